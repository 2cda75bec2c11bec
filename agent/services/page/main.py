"""The page's process: `python -m agent.services.page.main FILES`; see `agent/child.py`."""

from agent.child_start import begin

if __name__ == "__main__":
    # While it starts; once it serves it is twice as nice: it is missed meanwhile.
    begin("agent.services.page.serving", nice=5)
