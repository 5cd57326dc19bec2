//! The text of a kernel file, and what of it is code that can be mutated.

use std::ops::Range;

/// A file of `kernels/`.
#[derive(Clone, Debug)]
pub struct Source {
    pub name: String,
    pub text: String,
    /// As long as the text, and with the same lines. Spaces stand for what is not to be mutated:
    /// comments, strings, directives, what nvcc and the simulator do not share, and what is decided
    /// when the kernels are compiled.
    pub code: String,
}

impl Source {
    pub fn new(name: &str, text: &str) -> Self {
        assert!(text.is_ascii(), "{name}: expected ASCII");
        let mut code = text.to_owned();
        blank_comments_and_strings(&mut code);
        blank_directives(&mut code);
        for (word, end) in [("static_assert", ';'), ("typedef", ';'), ("enum", '}')] {
            blank_statements(&mut code, word, end);
        }
        blank_constants(&mut code);
        blank_template_parameters(&mut code);
        Self { name: name.to_owned(), text: text.to_owned(), code }
    }

    /// The files that this one includes.
    pub fn includes(&self) -> impl Iterator<Item = &str> {
        self.text.lines().filter_map(|line| {
            let (_, rest) = line.split_once("#include \"")?;
            rest.split('"').next()
        })
    }

    /// The number of the line at an index, from 1.
    pub fn line_number(&self, index: usize) -> usize {
        1 + self.text[..index].matches('\n').count()
    }

    /// The line at an index, without the spaces around it.
    pub fn line(&self, index: usize) -> &str {
        let begin = self.text[..index].rfind('\n').map_or(0, |newline| newline + 1);
        self.text[begin..].lines().next().unwrap_or_default().trim()
    }

    /// The names of the kernels.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        words_from(&self.code, "KERNEL").map(|begin| name_of(&self.code[begin..]))
    }

    /// The name of the function or kernel around an index.
    pub fn function(&self, index: usize) -> &str {
        let before = &self.code[..index];
        let found = words(before, "DEVICE").chain(words_from(before, "KERNEL")).max();
        found.map_or("", |begin| name_of(&self.code[begin..]))
    }
}

/// The name that a declaration gives a function: the word before the parenthesis, or for a kernel
/// the last but one in it.
fn name_of(declaration: &str) -> &str {
    let open = declaration.find('(').unwrap_or(declaration.len());
    if !declaration.starts_with("KERNEL") {
        return last_word(&declaration[..open]);
    }
    let close = closing(declaration, open).unwrap_or(declaration.len());
    let values = split_arguments(declaration, open + 1..close);
    values.len().checked_sub(2).map_or("", |name| declaration[values[name].clone()].trim())
}

fn blank(code: &mut String, range: Range<usize>) {
    let range = range.start..range.end.min(code.len());
    let spaces: String =
        code[range.clone()].chars().map(|c| if c == '\n' { c } else { ' ' }).collect();
    code.replace_range(range, &spaces);
}

fn blank_comments_and_strings(code: &mut String) {
    let mut index = 0;
    while index < code.len() {
        let rest = &code[index..];
        let len = match rest.as_bytes() {
            [b'/', b'/', ..] => rest.find('\n').unwrap_or(rest.len()),
            [b'/', b'*', ..] => rest.find("*/").map_or(rest.len(), |end| end + 2),
            [quote @ (b'"' | b'\''), ..] => quoted_len(rest.as_bytes(), *quote),
            _ => 0,
        };
        blank(code, index..index + len);
        index += len.max(1);
    }
}

fn quoted_len(bytes: &[u8], quote: u8) -> usize {
    let mut index = 1;
    while index < bytes.len() && bytes[index] != quote {
        index += if bytes[index] == b'\\' { 2 } else { 1 };
    }
    index + 1
}

/// Blanks lines with directives, and all that is in a conditional of `SIMT`.
fn blank_directives(code: &mut String) {
    let text = code.clone();
    let (mut begin, mut depth, mut continues) = (0, 0, false);
    for line in text.split_inclusive('\n') {
        let directive = line.trim_start().strip_prefix('#').map(str::trim_start);
        let is_directive = continues || directive.is_some();
        let directive = directive.unwrap_or_default();
        if directive.starts_with("if") && (depth > 0 || line.contains("SIMT")) {
            depth += 1;
        }
        if depth > 0 || is_directive {
            blank(code, begin..begin + line.len());
        }
        if depth > 0 && directive.starts_with("endif") {
            depth -= 1;
        }
        continues = is_directive && line.trim_end().ends_with('\\');
        begin += line.len();
    }
}

/// Blanks what begins with a word, up to and with a character.
fn blank_statements(code: &mut String, word: &str, end: char) {
    let found: Vec<usize> = words(code, word).collect();
    for begin in found {
        let len = code[begin..].find(end).map_or(word.len(), |len| len + 1);
        blank(code, begin..begin + len);
    }
}

/// Blanks constants, but not the condition of `if constexpr`.
fn blank_constants(code: &mut String) {
    let found: Vec<usize> = words(code, "constexpr").collect();
    for begin in found {
        let end = if last_word(&code[..begin]) == "if" {
            code[begin..].find('(').and_then(|open| closing(code, begin + open))
        } else {
            code[begin..].find(';').map(|len| begin + len)
        };
        blank(code, begin..end.map_or(code.len(), |end| end + 1));
    }
}

fn blank_template_parameters(code: &mut String) {
    let found: Vec<usize> = words(code, "template").collect();
    for begin in found {
        let mut depth = 0;
        let end = code[begin..].char_indices().find(|&(_, character)| {
            depth += i32::from(character == '<') - i32::from(character == '>');
            character == '>' && depth == 0
        });
        let len = end.map_or(0, |(len, _)| len + 1);
        blank(code, begin..begin + len);
    }
}

// ---- Reading code -------------------------------------------------------------------------------

pub fn is_word(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}

/// Where a word begins.
pub fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    words_from(code, word).filter(move |&index| !code[index + word.len()..].starts_with(is_word))
}

/// Where a word begins that begins with `start`.
fn words_from<'a>(code: &'a str, start: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(start).map(|(index, _)| index).filter(|&i| !code[..i].ends_with(is_word))
}

/// The word at the end.
pub fn last_word(code: &str) -> &str {
    let code = code.trim_end();
    let begin = code.rfind(|character| !is_word(character)).map_or(0, |before| before + 1);
    &code[begin..]
}

/// Where the parenthesis, bracket or brace is closed that is opened at an index.
pub fn closing(code: &str, open: usize) -> Option<usize> {
    let mut depth = 0;
    for (index, character) in code[open..].char_indices() {
        match character {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(open + index);
        }
    }
    None
}

/// The arguments in a range: what commas separate that stand in no parentheses of their own.
pub fn split_arguments(code: &str, range: Range<usize>) -> Vec<Range<usize>> {
    let (mut arguments, mut depth, mut begin) = (Vec::new(), 0, range.start);
    for (index, character) in code[range.clone()].char_indices() {
        match character {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                arguments.push(begin..range.start + index);
                begin = range.start + index + 1;
            }
            _ => {}
        }
    }
    arguments.push(begin..range.end);
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> String {
        Source::new("test.cu", text).code.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn only_code_remains_that_runs_on_both_sides() {
        assert_eq!(code("a; // b\nc /* d\n e */ f(\"g // \\\"h\", 'i');"), "a; c f( , );");
        assert_eq!(
            code(
                "#define A(x) \\\n  b(x)\nc\n#ifdef SIMT\nd\n#if E\nf\n#endif\n#else\ng\n#endif\nh"
            ),
            "c h"
        );
        assert_eq!(code("constexpr u32 a = b + 1;\nc;"), "c;");
        assert_eq!(code("if constexpr (a < b) c;"), "if c;");
        assert_eq!(code("enum E : u32 { a = 1 };\nstatic_assert(a < b, \"c\");\nd"), "; d");
        assert_eq!(code("template <u32 n, class T = F<n>>\nDEVICE void f();"), "DEVICE void f();");
    }

    #[test]
    fn lines_and_indices_are_those_of_the_text() {
        let source = Source::new("test.cu", "// a\n/* b\n*/ c \"d\"\n  e(f);\n");
        assert_eq!(source.code.len(), source.text.len());
        let index = source.code.find("e(").unwrap();
        assert_eq!(source.line_number(index), 4);
        assert_eq!(source.line(index), "e(f);");
    }

    #[test]
    fn a_place_belongs_to_the_function_around_it() {
        let source = Source::new(
            "test.cu",
            "template <class T>\nDEVICE const T &first(T *a) { b; }\n\
             KERNEL(256, second, Arguments) { c; }\n\
             KERNEL_RESIDENT(128, 2, third, Arguments) { d; }\n",
        );
        let function = |place: &str| source.function(source.code.find(place).unwrap());
        assert_eq!(function("b;"), "first");
        assert_eq!(function("c;"), "second");
        assert_eq!(function("d;"), "third");
        assert_eq!(source.function(0), "");
    }

    #[test]
    fn arguments_end_at_their_own_commas() {
        let code = "f(a, g(b, c), d[e])";
        let arguments = split_arguments(code, 2..closing(code, 1).unwrap());
        let texts: Vec<&str> = arguments.into_iter().map(|range| code[range].trim()).collect();
        assert_eq!(texts, ["a", "g(b, c)", "d[e]"]);
    }
}
