"""The inspection in a process of its own; `child` is the agent's side of it, `worker` the other."""
