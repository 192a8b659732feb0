"""The command line `nxm`. Its entry point is `nxm_hf.cli.main.main`."""
