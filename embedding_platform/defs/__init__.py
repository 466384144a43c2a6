"""The Dagster face, one module per Dagster concept. Nothing below this floor imports dagster."""
