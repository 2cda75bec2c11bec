"""Many lines: what each should inspect with is desired in a registry, and each agent follows it."""
