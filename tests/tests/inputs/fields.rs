//! The fields of a document, read from the sources of its types.

use std::collections::BTreeMap;
use std::path::Path;

use syn::{Attribute, Fields, GenericArgument, Item, PathArguments, Type};

/// A field of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    /// Path from the root of the document; `[]` stands for the items of a list.
    pub(crate) path: String,
    /// Other spellings of its name.
    pub(crate) aliases: Vec<String>,
}

/// Returns every field below a type, in the order of the sources.
pub(crate) fn fields_of(root: &str, sources: &[&Path]) -> Vec<Field> {
    let mut types = BTreeMap::new();
    for source in sources {
        let text = std::fs::read_to_string(source).unwrap();
        for item in syn::parse_file(&text).unwrap().items {
            if let Item::Struct(syn::ItemStruct { ident, .. })
            | Item::Enum(syn::ItemEnum { ident, .. }) = &item
            {
                types.insert(ident.to_string(), item);
            }
        }
    }
    let mut fields = Vec::new();
    walk(&types, root, "", &mut fields);
    assert!(!fields.is_empty(), "{root} has no fields");
    fields
}

fn walk(types: &BTreeMap<String, Item>, name: &str, prefix: &str, found: &mut Vec<Field>) {
    if let Some(Item::Struct(item)) = types.get(name) {
        let case = Case::of(&item.attrs);
        add_fields(types, &item.fields, case, prefix, found);
    }
    if let Some(Item::Enum(item)) = types.get(name)
        && let Some(tag) = serde_value(&item.attrs, "tag")
    {
        found.push(Field { path: join(prefix, &tag), aliases: Vec::new() });
        for variant in &item.variants {
            add_fields(types, &variant.fields, Case::Camel, prefix, found);
        }
    }
}

fn add_fields(
    types: &BTreeMap<String, Item>,
    fields: &Fields,
    case: Case,
    prefix: &str,
    found: &mut Vec<Field>,
) {
    for field in fields {
        let Some(ident) = &field.ident else { continue };
        if has_word(&field.attrs, "skip") {
            continue;
        }
        let (inner, is_list) = inner_type(&field.ty);
        if has_word(&field.attrs, "flatten") {
            walk(types, &inner, prefix, found);
            continue;
        }
        let renamed = serde_value(&field.attrs, "rename");
        let path = join(prefix, &renamed.unwrap_or_else(|| case.apply(&ident.to_string())));
        let aliases = serde_value(&field.attrs, "alias").into_iter().collect();
        found.push(Field { path: path.clone(), aliases });
        let below = if is_list { format!("{path}[]") } else { path };
        walk(types, &inner, &below, found);
    }
}

/// Returns the name of the innermost type, and whether a list holds it.
fn inner_type(ty: &Type) -> (String, bool) {
    let Type::Path(path) = ty else { return (String::new(), false) };
    let Some(last) = path.path.segments.last() else { return (String::new(), false) };
    let name = last.ident.to_string();
    let PathArguments::AngleBracketed(arguments) = &last.arguments else { return (name, false) };
    let argument = arguments.args.iter().find_map(|argument| {
        let GenericArgument::Type(inner) = argument else { return None };
        Some(inner_type(inner))
    });
    match (name.as_str(), argument) {
        ("Option" | "Box", Some(inner)) => inner,
        ("Vec" | "BTreeSet", Some((inner, _))) => (inner, true),
        _ => (name, false),
    }
}

/// Spelling of the fields of a type.
#[derive(Clone, Copy)]
enum Case {
    Camel,
    AsWritten,
}

impl Case {
    fn of(attributes: &[Attribute]) -> Self {
        match serde_value(attributes, "rename_all").as_deref() {
            Some("camelCase") => Self::Camel,
            _ => Self::AsWritten,
        }
    }

    fn apply(self, name: &str) -> String {
        let mut parts = name.split('_');
        match self {
            Self::AsWritten => name.to_owned(),
            Self::Camel => {
                let first = parts.next().unwrap_or_default().to_owned();
                parts.fold(first, |whole, part| {
                    let (head, tail) = part.split_at(part.len().min(1));
                    whole + &head.to_uppercase() + tail
                })
            }
        }
    }
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

/// Returns the value of `key = "value"` in the serde attributes.
fn serde_value(attributes: &[Attribute], key: &str) -> Option<String> {
    let mut found = None;
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("serde")) {
        attribute
            .parse_nested_meta(|meta| {
                if !meta.input.peek(syn::Token![=]) {
                    return Ok(());
                }
                let value: syn::LitStr = meta.value()?.parse()?;
                if meta.path.is_ident(key) {
                    found = Some(value.value());
                }
                Ok(())
            })
            .unwrap();
    }
    found
}

/// Returns whether a word stands alone in the serde attributes.
fn has_word(attributes: &[Attribute], word: &str) -> bool {
    let mut found = false;
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("serde")) {
        attribute
            .parse_nested_meta(|meta| {
                if meta.input.peek(syn::Token![=]) {
                    let _: syn::LitStr = meta.value()?.parse()?;
                } else {
                    found |= meta.path.is_ident(word);
                }
                Ok(())
            })
            .unwrap();
    }
    found
}
