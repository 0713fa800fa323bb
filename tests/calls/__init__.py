"""Good calls of every op, a module per family: functions that make the arguments by name, in the order of the schema."""
