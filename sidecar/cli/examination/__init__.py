"""What `sidecar doctor` looks at."""
