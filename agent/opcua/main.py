"""A process of OPC UA: `python -m agent.opcua.main FILES`; see `agent/child.py`."""

from agent.child_start import begin

if __name__ == "__main__":
    begin("agent.opcua.serving", nice=10)
