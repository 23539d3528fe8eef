from node.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PollRequest(_message.Message):
    __slots__ = ("request_id", "topic", "messages", "tools", "params", "candidates", "strategy", "coordinator")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    topic: str
    messages: _containers.RepeatedCompositeFieldContainer[_types_pb2.Message]
    tools: _containers.RepeatedCompositeFieldContainer[_types_pb2.Tool]
    params: _types_pb2.SamplingParams
    candidates: _containers.RepeatedScalarFieldContainer[int]
    strategy: str
    coordinator: str
    def __init__(self, request_id: _Optional[str] = ..., topic: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[_types_pb2.Message, _Mapping]]] = ..., tools: _Optional[_Iterable[_Union[_types_pb2.Tool, _Mapping]]] = ..., params: _Optional[_Union[_types_pb2.SamplingParams, _Mapping]] = ..., candidates: _Optional[_Iterable[int]] = ..., strategy: _Optional[str] = ..., coordinator: _Optional[str] = ...) -> None: ...

class PollResponse(_message.Message):
    __slots__ = ("ballot", "tally")
    BALLOT_FIELD_NUMBER: _ClassVar[int]
    TALLY_FIELD_NUMBER: _ClassVar[int]
    ballot: _types_pb2.Ballot
    tally: _types_pb2.Tally
    def __init__(self, ballot: _Optional[_Union[_types_pb2.Ballot, _Mapping]] = ..., tally: _Optional[_Union[_types_pb2.Tally, _Mapping]] = ...) -> None: ...

class DecideRequest(_message.Message):
    __slots__ = ("request_id", "topic", "version", "messages", "winner")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    WINNER_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    topic: str
    version: _types_pb2.Version
    messages: _containers.RepeatedCompositeFieldContainer[_types_pb2.Message]
    winner: int
    def __init__(self, request_id: _Optional[str] = ..., topic: _Optional[str] = ..., version: _Optional[_Union[_types_pb2.Version, _Mapping]] = ..., messages: _Optional[_Iterable[_Union[_types_pb2.Message, _Mapping]]] = ..., winner: _Optional[int] = ...) -> None: ...

class DecideResponse(_message.Message):
    __slots__ = ("committed", "held")
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    committed: bool
    held: _types_pb2.Version
    def __init__(self, committed: bool = ..., held: _Optional[_Union[_types_pb2.Version, _Mapping]] = ...) -> None: ...
