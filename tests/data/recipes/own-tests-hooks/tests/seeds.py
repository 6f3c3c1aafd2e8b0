GREETING = "seeded"
