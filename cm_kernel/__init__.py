"""The Jupyter kernel whose cells run on boards: "MicroPython (Cloudmanager)"."""
