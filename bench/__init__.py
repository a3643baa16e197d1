"""Measures trio-sp side by side with raw trio streams, pynng and pyzmq: ``python -m bench``."""
