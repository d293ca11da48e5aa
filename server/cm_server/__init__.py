"""The Cloudmanager service: the one network endpoint of a fleet."""
