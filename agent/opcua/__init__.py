"""OPC UA, in processes of its own: the server after OPC 40100-1, and what speaks to a PLC.

Nothing here but `main` of each process imports asyncua; the agent itself never does.
"""
