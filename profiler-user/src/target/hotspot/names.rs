//! What the JVM calls its code.

use super::{
    code::{Block, METHODS},
    structs::{MethodStructs, Structs},
};
use crate::target::words::Words;

/// Names of classes and methods are seldom longer than 100.
const TEXT_LIMIT_BYTES: u16 = 1024;

/// The name of a block's code, which is of this kind: for what the JVM has compiled, the class and the method; else the kind.
pub(super) fn name(block: &Block, kind: &[u8], structs: &Structs, words: &Words) -> Option<String> {
    if METHODS.contains(&kind) {
        return method_name(block.blob(structs)?, structs.methods.as_ref()?, words);
    }
    Some(String::from_utf8_lossy(kind).into_owned())
}

/// The class and the method of which this is the code, as in `java.util.zip.Inflater.inflate`.
fn method_name(blob: u64, structs: &MethodStructs, words: &Words) -> Option<String> {
    let at = |object: u64, field: u64| words.word(object.checked_add(field)?);
    let method = at(blob, structs.method)?;
    let constant = at(method, structs.constant)?;
    let pool = at(constant, structs.constants)?;
    let index = words.quarter(constant.checked_add(structs.name_index)?)?;
    let name = at(pool, structs.pool_bytes.checked_add(8 * u64::from(index))?)?;
    let class = at(at(pool, structs.holder)?, structs.class_name)?;
    let class = symbol(class, structs, words)?.replace('/', ".");
    Some(format!("{class}.{}", symbol(name, structs, words)?))
}

/// The text of a `Symbol`; `None` where it has none.
fn symbol(address: u64, structs: &MethodStructs, words: &Words) -> Option<String> {
    let length = words.quarter(address.checked_add(structs.symbol_length)?)?;
    let mut text = vec![0; usize::from(length.min(TEXT_LIMIT_BYTES))];
    words.read(address.checked_add(structs.symbol_text)?, &mut text)?;
    (!text.is_empty()).then(|| String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::{
        super::fixture::{Image, LOW, STRUCTS},
        *,
    };

    fn name_at(image: &Image, segment: u64) -> Option<String> {
        let words = image.read();
        let block = Block::find(LOW + 128 * segment, &STRUCTS, &words)?;
        name(&block, &block.kind(&words)?, &STRUCTS, &words)
    }

    #[test]
    fn a_method_is_named_with_its_class() {
        let image = Image::with_heap();
        image.block(1, 1, false, 12);
        image.method(1, b"java/util/zip/Inflater", b"inflate");
        assert_eq!(name_at(&image, 1).as_deref(), Some("java.util.zip.Inflater.inflate"));
    }

    #[test]
    fn a_stub_is_named_by_its_kind() {
        let image = Image::with_heap();
        image.block(3, 1, true, 0);
        assert_eq!(name_at(&image, 3).as_deref(), Some("Interpreter"));
    }

    #[test]
    fn a_method_that_leads_nowhere_has_no_name() {
        let image = Image::with_heap();
        image.block(1, 1, false, 12);
        image.method(1, b"java/util/zip/Inflater", b"inflate");
        for wild in [0, 0x7000_0000, u64::MAX] {
            let image = Image::with_heap();
            image.block(1, 1, false, 12);
            image.method(1, b"Class", b"method");
            image.words(LOW + 128 + 0x10 + STRUCTS.methods.unwrap().method, &[wild]);
            assert_eq!(name_at(&image, 1), None, "{wild:#x}");
        }
    }

    #[test]
    fn a_name_that_claims_to_be_endless_is_cut() {
        let image = Image::with_heap();
        image.block(1, 1, false, 12);
        image.method(1, &[b'C'; 3000], &[0xff; 3000]);
        let name = name_at(&image, 1).unwrap();
        assert_eq!(name.matches('C').count(), 1024);
        assert_eq!(name.matches(char::REPLACEMENT_CHARACTER).count(), 1024);
    }
}
