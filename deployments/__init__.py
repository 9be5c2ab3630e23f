"""What Ray Serve runs. The only package that imports ray or starlette."""
