"""The runs behind `python -m scripts.chaos`: what is served, sent, broken, and how it is judged."""
