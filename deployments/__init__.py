"""What Ray Serve runs. The only package that imports ray or starlette."""

from deployments.own_packages import import_own

OWN_PACKAGES = import_own("adapters", "references", "router")
