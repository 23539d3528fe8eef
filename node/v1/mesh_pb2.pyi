from node.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HelloRequest(_message.Message):
    __slots__ = ("node", "protocol", "leaving")
    NODE_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    node: _types_pb2.NodeInfo
    protocol: int
    leaving: bool
    def __init__(self, node: _Optional[_Union[_types_pb2.NodeInfo, _Mapping]] = ..., protocol: _Optional[int] = ..., leaving: bool = ...) -> None: ...

class HelloResponse(_message.Message):
    __slots__ = ("node", "peers", "protocol")
    NODE_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    node: _types_pb2.NodeInfo
    peers: _containers.RepeatedCompositeFieldContainer[_types_pb2.NodeInfo]
    protocol: int
    def __init__(self, node: _Optional[_Union[_types_pb2.NodeInfo, _Mapping]] = ..., peers: _Optional[_Iterable[_Union[_types_pb2.NodeInfo, _Mapping]]] = ..., protocol: _Optional[int] = ...) -> None: ...

class ProbeRequest(_message.Message):
    __slots__ = ("node", "news", "target")
    NODE_FIELD_NUMBER: _ClassVar[int]
    NEWS_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    node: _types_pb2.NodeInfo
    news: _containers.RepeatedCompositeFieldContainer[_types_pb2.NodeInfo]
    target: str
    def __init__(self, node: _Optional[_Union[_types_pb2.NodeInfo, _Mapping]] = ..., news: _Optional[_Iterable[_Union[_types_pb2.NodeInfo, _Mapping]]] = ..., target: _Optional[str] = ...) -> None: ...

class ProbeResponse(_message.Message):
    __slots__ = ("node", "news", "alive")
    NODE_FIELD_NUMBER: _ClassVar[int]
    NEWS_FIELD_NUMBER: _ClassVar[int]
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    node: _types_pb2.NodeInfo
    news: _containers.RepeatedCompositeFieldContainer[_types_pb2.NodeInfo]
    alive: bool
    def __init__(self, node: _Optional[_Union[_types_pb2.NodeInfo, _Mapping]] = ..., news: _Optional[_Iterable[_Union[_types_pb2.NodeInfo, _Mapping]]] = ..., alive: bool = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("nodes", "topics", "slots", "mesh_id", "version")
    NODES_FIELD_NUMBER: _ClassVar[int]
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    MESH_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[_types_pb2.NodeInfo]
    topics: _containers.RepeatedCompositeFieldContainer[_types_pb2.TopicInfo]
    slots: Slots
    mesh_id: str
    version: str
    def __init__(self, nodes: _Optional[_Iterable[_Union[_types_pb2.NodeInfo, _Mapping]]] = ..., topics: _Optional[_Iterable[_Union[_types_pb2.TopicInfo, _Mapping]]] = ..., slots: _Optional[_Union[Slots, _Mapping]] = ..., mesh_id: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class Slots(_message.Message):
    __slots__ = ("used", "parked", "free")
    USED_FIELD_NUMBER: _ClassVar[int]
    PARKED_FIELD_NUMBER: _ClassVar[int]
    FREE_FIELD_NUMBER: _ClassVar[int]
    used: int
    parked: int
    free: int
    def __init__(self, used: _Optional[int] = ..., parked: _Optional[int] = ..., free: _Optional[int] = ...) -> None: ...
