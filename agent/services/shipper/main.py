"""The shipper's process: `python -m agent.services.shipper.main FILES`; see `agent/child.py`."""

from agent.child_start import begin

if __name__ == "__main__":
    begin("agent.services.shipper.serving", nice=10)
