from node.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AppendRequest(_message.Message):
    __slots__ = ("topic", "version", "parent", "messages", "tokens", "fingerprint", "request_id")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    topic: str
    version: _types_pb2.Version
    parent: _types_pb2.Version
    messages: _containers.RepeatedCompositeFieldContainer[_types_pb2.Message]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    fingerprint: str
    request_id: str
    def __init__(self, topic: _Optional[str] = ..., version: _Optional[_Union[_types_pb2.Version, _Mapping]] = ..., parent: _Optional[_Union[_types_pb2.Version, _Mapping]] = ..., messages: _Optional[_Iterable[_Union[_types_pb2.Message, _Mapping]]] = ..., tokens: _Optional[_Iterable[int]] = ..., fingerprint: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class AppendResponse(_message.Message):
    __slots__ = ("stored", "held")
    STORED_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    stored: bool
    held: _types_pb2.Version
    def __init__(self, stored: bool = ..., held: _Optional[_Union[_types_pb2.Version, _Mapping]] = ...) -> None: ...

class OfferRequest(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: bytes
    def __init__(self, header: _Optional[bytes] = ...) -> None: ...

class OfferResponse(_message.Message):
    __slots__ = ("held", "missing")
    HELD_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    held: _types_pb2.Version
    missing: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, held: _Optional[_Union[_types_pb2.Version, _Mapping]] = ..., missing: _Optional[_Iterable[bytes]] = ...) -> None: ...

class PushRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: bytes
    chunk: BlockChunk
    def __init__(self, header: _Optional[bytes] = ..., chunk: _Optional[_Union[BlockChunk, _Mapping]] = ...) -> None: ...

class BlockChunk(_message.Message):
    __slots__ = ("key", "offset", "data", "last")
    KEY_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    offset: int
    data: bytes
    last: bool
    def __init__(self, key: _Optional[bytes] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., last: bool = ...) -> None: ...

class PushResponse(_message.Message):
    __slots__ = ("accepted", "held", "reason")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    held: _types_pb2.Version
    reason: str
    def __init__(self, accepted: bool = ..., held: _Optional[_Union[_types_pb2.Version, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class PullRequest(_message.Message):
    __slots__ = ("topic", "held", "fingerprint")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    topic: str
    held: _containers.RepeatedScalarFieldContainer[bytes]
    fingerprint: str
    def __init__(self, topic: _Optional[str] = ..., held: _Optional[_Iterable[bytes]] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class PullResponse(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: bytes
    chunk: BlockChunk
    def __init__(self, header: _Optional[bytes] = ..., chunk: _Optional[_Union[BlockChunk, _Mapping]] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("topics",)
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    topics: _containers.RepeatedCompositeFieldContainer[_types_pb2.TopicInfo]
    def __init__(self, topics: _Optional[_Iterable[_Union[_types_pb2.TopicInfo, _Mapping]]] = ...) -> None: ...
