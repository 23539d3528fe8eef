"""Pure decisions: no asyncio, threads, files, grpc or clock; time is passed in."""
