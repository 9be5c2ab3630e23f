"""Questions and answers: reading, cleaning, splitting."""
