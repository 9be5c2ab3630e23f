"""Log-probabilities: computed beside the draw, and given their texts."""
