"""Inference: backends, the scheduler over them, and the decode thread with its asyncio face."""
