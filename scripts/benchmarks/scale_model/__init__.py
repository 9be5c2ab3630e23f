"""A discrete-event model of a clinic with many replicas, and the measured costs that it is fed."""
