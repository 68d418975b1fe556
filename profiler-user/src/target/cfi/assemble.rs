//! Call frame information and ELF images, put together for tests.

/// `DW_CFA_*` and `DW_OP_*` numbers that the tests need (DWARF 5, sections 7.24 and 7.7.1).
pub(super) const ADVANCE: u8 = 0x40;
pub(super) const OFFSET: u8 = 0x80;
pub(super) const ADVANCE4: u8 = 0x04;
pub(super) const UNDEFINED: u8 = 0x07;
pub(super) const SAME_VALUE: u8 = 0x08;
pub(super) const REGISTER: u8 = 0x09;
pub(super) const REMEMBER: u8 = 0x0a;
pub(super) const RESTORE: u8 = 0x0b;
pub(super) const DEF_CFA: u8 = 0x0c;
pub(super) const DEF_CFA_OFFSET: u8 = 0x0e;
pub(super) const DEF_CFA_EXPRESSION: u8 = 0x0f;
pub(super) const EXPRESSION: u8 = 0x10;
pub(super) const OFFSET_SIGNED: u8 = 0x11;
pub(super) const DEF_CFA_SIGNED: u8 = 0x12;
pub(super) const VAL_OFFSET: u8 = 0x14;
pub(super) const VAL_EXPRESSION: u8 = 0x16;
pub(super) const DEREF: u8 = 0x06;
pub(super) const BREG: u8 = 0x70;

/// Register numbers of the psABI.
pub(super) const RBP: u8 = 6;
pub(super) const RSP: u8 = 7;
pub(super) const RA: u8 = 16;

/// An `.eh_frame` under construction.
pub(super) struct EhFrame {
    bytes: Vec<u8>,
    cie: usize,
}

impl EhFrame {
    /// With what compilers say for all functions: CFA = rsp + 8, return address at CFA − 8.
    pub(super) fn new() -> Self {
        Self { bytes: Vec::new(), cie: 0 }.cie("zR", &[DEF_CFA, RSP, 8, OFFSET | RA, 1])
    }

    /// Another CIE for the functions that follow; their addresses are absolute.
    pub(super) fn cie(mut self, augmentation: &str, instructions: &[u8]) -> Self {
        self.cie = self.bytes.len();
        let mut body = vec![1];
        body.extend(augmentation.as_bytes());
        // NUL, code alignment 1, data alignment −8, return address register, one byte of augmentation: absolute.
        body.extend([0, 1, 0x78, RA, 1, 0]);
        body.extend(instructions);
        self.entry(0, &body);
        self
    }

    /// A function, described by a program.
    pub(super) fn function(mut self, start: u64, size_bytes: u64, instructions: &[u8]) -> Self {
        let distance = u32::try_from(self.bytes.len() + 4 - self.cie).unwrap();
        let mut body = [start.to_le_bytes(), size_bytes.to_le_bytes()].concat();
        body.push(0);
        body.extend(instructions);
        self.entry(distance, &body);
        self
    }

    fn entry(&mut self, id: u32, body: &[u8]) {
        let length = u32::try_from(body.len() + 4).unwrap();
        self.bytes.extend(length.to_le_bytes());
        self.bytes.extend(id.to_le_bytes());
        self.bytes.extend(body);
    }

    /// Where the next entry will lie.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// An ELF image for x86-64 with one section.
pub(super) fn elf_with_section(name: &str, flags: u64, bytes: &[u8]) -> Vec<u8> {
    let names = format!("\0{name}\0.shstrtab\0");
    let names_at = 64 + bytes.len();
    let headers_at = (names_at + names.len()).next_multiple_of(8);
    let mut image = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
    image.resize(16, 0);
    let word = |number: usize| u64::try_from(number).unwrap();
    for half in [3_u16, 62, 1, 0] {
        image.extend(half.to_le_bytes());
    }
    for long in [0, 0, word(headers_at)] {
        image.extend(long.to_le_bytes());
    }
    for half in [0_u16, 0, 64, 0, 0, 64, 3, 2] {
        image.extend(half.to_le_bytes());
    }
    image.extend(bytes);
    image.extend(names.as_bytes());
    image.resize(headers_at + 64, 0);
    let sections =
        [(1_u32, 1_u32, flags, 64, bytes.len()), (2 + name.len() as u32, 3, 0, names_at, names.len())];
    for (name, kind, flags, offset, size_bytes) in sections {
        image.extend(name.to_le_bytes());
        image.extend(kind.to_le_bytes());
        for long in [flags, 0, word(offset), word(size_bytes), 0, 1, 0] {
            image.extend(long.to_le_bytes());
        }
    }
    image
}
