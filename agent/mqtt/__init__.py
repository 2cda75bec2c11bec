"""The connection to an MQTT broker, for whatever speaks to one: sink, requests, triggers."""
