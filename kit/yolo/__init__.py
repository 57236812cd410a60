"""All that knows Ultralytics."""
