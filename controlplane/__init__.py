"""The foundation: settings, URLs, schedules, leases, health checks, start page. No domain knowledge."""
