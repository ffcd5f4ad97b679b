"""What a run wrote for TensorBoard, read without it."""

from tensorboardX.proto import event_pb2


def records(folder):
    """The events in a TensorBoard folder, oldest first."""
    for file in sorted((folder / "tensorboard").glob("events.*")):
        data, at = file.read_bytes(), 0
        while at < len(data):  # length, its checksum, record, its checksum
            length = int.from_bytes(data[at : at + 8], "little")
            yield event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
            at += length + 16


def events(folder):
    """{tag: [(step, value), …]} of a TensorBoard folder; of pictures the value is their PNG."""
    found = {}
    for event in records(folder):
        for value in event.summary.value:
            kind = value.WhichOneof("value")
            content = value.image.encoded_image_string if kind == "image" else value.simple_value
            found.setdefault(value.tag, []).append((event.step, content))
    return found
