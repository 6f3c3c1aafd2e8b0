"""The frame: settings, URLs, schedules, leases, health, start page. No domain knowledge."""
