"""The comparison of recipes on GLUE."""
