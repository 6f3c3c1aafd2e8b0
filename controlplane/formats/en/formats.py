"""How times are shown where a template says nothing else, as in the admin: 24 hours, with the zone, in one line."""

DATETIME_FORMAT = "Y-m-d\u00a0H:i:s\u00a0\\U\\T\\C"
SHORT_DATETIME_FORMAT = DATETIME_FORMAT
DATE_FORMAT = SHORT_DATE_FORMAT = "Y-m-d"
TIME_FORMAT = "H:i:s"
