//! The list of mutants that change nothing that can be seen, `tests/simt/equivalent_mutants`.

use crate::mutations::Mutation;
use crate::source::Source;
use std::fmt;

/// What tells a mutant from all others, as the list has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    pub file: String,
    pub function: String,
    pub line: String,
    pub mutation: String,
}

impl Identity {
    pub fn of(source: &Source, mutation: &Mutation) -> Self {
        let place = mutation.range.start;
        Self {
            file: source.name.clone(),
            function: source.function(place).to_owned(),
            line: source.line(place).to_owned(),
            mutation: mutation.what.clone(),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, function, line, mutation } = self;
        write!(text, "file: {file}\nfunction: {function}\nline: {line}\nmutation: {mutation}")
    }
}

/// Reads the list: paragraphs of lines `name: value`, with lines that begin with `#` between them. The
/// last one of a paragraph is the reason, which may go on in indented lines.
pub fn read(text: &str) -> Result<Vec<Identity>, String> {
    let mut entries = Vec::new();
    for paragraph in text.split("\n\n").map(str::trim).filter(|paragraph| !paragraph.is_empty()) {
        if paragraph.lines().all(|line| line.starts_with('#')) {
            continue;
        }
        entries.push(entry(paragraph).map_err(|problem| format!("{problem} in\n{paragraph}"))?);
    }
    Ok(entries)
}

fn entry(paragraph: &str) -> Result<Identity, String> {
    let mut lines = paragraph.lines();
    let mut value = |name: &str| {
        let line = lines.next().unwrap_or_default();
        let value = line.strip_prefix(name).and_then(|rest| rest.strip_prefix(": "));
        value.map(str::to_owned).ok_or(format!("expected `{name}: `, found `{line}`"))
    };
    let identity = Identity {
        file: value("file")?,
        function: value("function")?,
        line: value("line")?,
        mutation: value("mutation")?,
    };
    value("reason")?;
    match lines.find(|line| !line.starts_with(' ')) {
        Some(line) => Err(format!("expected a new paragraph before `{line}`")),
        None => Ok(identity),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: &str =
        "file: a.cu\nfunction: f\nline: b: c;\nmutation: delete `c`\nreason: it is\n  so.";

    #[test]
    fn an_entry_names_one_mutant_and_a_reason() {
        let listed = read(&format!("# Why\n# so.\n\n{ENTRY}\n\n{ENTRY}\n")).unwrap();
        assert_eq!(listed.len(), 2);
        assert_eq!(listed[0].line, "b: c;");
        assert_eq!(format!("{}\nreason: it is\n  so.", listed[0]), ENTRY);
        assert!(read(&ENTRY.replace("reason: it is\n  so.", "")).unwrap_err().contains("reason"));
        assert!(read(&format!("{ENTRY}\nfile: a.cu")).unwrap_err().contains("new paragraph"));
    }
}
