"""The command line `nxm`."""
