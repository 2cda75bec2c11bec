"""The fleet's process: `python -m agent.services.fleet.main FILES`; see `agent/child.py`."""

from agent.child_start import begin

if __name__ == "__main__":
    begin("agent.services.fleet.serving", nice=10)
