"""The search page and its JSON API. What knows HTTP stays in here; nothing here knows Dagster."""
