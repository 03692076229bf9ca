//! Protocol Buffers messages, field by field, as far as event files need them.

/// A message that is being encoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Message(Vec<u8>);

impl Message {
    /// The encoded bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// A field of type int64, uint64, bool or of an enum.
    pub(super) fn integer(mut self, field: u32, value: u64) -> Self {
        self.key(field, 0);
        self.varint(value);
        self
    }

    /// A field of type double.
    pub(super) fn double(mut self, field: u32, value: f64) -> Self {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// A field of type float.
    pub(super) fn float(mut self, field: u32, value: f32) -> Self {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// A field of type bytes or string.
    pub(super) fn text(mut self, field: u32, value: &[u8]) -> Self {
        self.key(field, 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    /// A field that is itself a message.
    pub(super) fn message(self, field: u32, value: Message) -> Self {
        self.text(field, &value.0)
    }

    /// A repeated field of type double, packed.
    pub(super) fn doubles(self, field: u32, values: &[f64]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.text(field, &bytes)
    }

    fn key(&mut self, field: u32, wire_type: u32) {
        self.varint(u64::from(field << 3 | wire_type));
    }

    /// Seven bits a byte, the lowest first; the high bit says that more follow.
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of the encoding's description (protobuf.dev, "Encoding").
    #[test]
    fn the_published_examples() {
        assert_eq!(Message::default().integer(1, 150).bytes(), [0x08, 0x96, 0x01]);
        let text = Message::default().text(2, b"testing");
        assert_eq!(text.bytes(), b"\x12\x07testing");
        let inner = Message::default().integer(1, 150);
        assert_eq!(Message::default().message(3, inner).bytes(), [0x1a, 0x03, 0x08, 0x96, 0x01]);
        assert_eq!(Message::default().float(1, 1.0).bytes(), [0x0d, 0, 0, 0x80, 0x3f]);
        assert_eq!(
            Message::default().doubles(6, &[1.0]).bytes(),
            [0x32, 8, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f]
        );
    }
}
