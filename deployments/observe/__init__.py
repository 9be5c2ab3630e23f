"""What an operator sees of every process alike: bounded labels, memory, records and spans."""
