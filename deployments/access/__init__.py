"""The front door: who may ask, how much, and what a request may look like before it is read."""
