"""Pure array functions: no files, no models, no printing."""
