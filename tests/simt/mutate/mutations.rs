//! Single changes of a kernel file, each of which some test should notice: a synchronisation that is
//! deleted or weakened, a bound that is off by one or not there, an index that is another.

use crate::source::{Source, closing, is_word, last_word, split_arguments, words};
use std::collections::HashMap;
use std::ops::Range;

/// A change of one place of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutation {
    /// What is replaced, in the text of the file.
    pub range: Range<usize>,
    pub replacement: String,
    /// The change, in words. With the function and the line it names the mutation.
    pub what: String,
}

impl Mutation {
    fn delete(source: &Source, range: Range<usize>) -> Self {
        let what = format!("delete `{}`", on_one_line(&source.code[range.clone()]));
        Self { range, replacement: String::new(), what }
    }

    fn replace(source: &Source, range: Range<usize>, replacement: String) -> Self {
        let [old, new] = [&source.code[range.clone()], &replacement].map(on_one_line);
        Self { range, replacement, what: format!("`{old}` becomes `{new}`") }
    }

    /// The file with the change. Lines keep their numbers.
    pub fn apply(&self, source: &Source) -> String {
        let mut text = source.text.clone();
        let lines = text[self.range.clone()].matches('\n').count();
        let kept = self.replacement.matches('\n').count();
        let replacement = self.replacement.clone() + &"\n".repeat(lines.saturating_sub(kept));
        text.replace_range(self.range.clone(), &replacement);
        text
    }
}

fn on_one_line(code: &str) -> String {
    code.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// All mutations of a file, in the order of their places. Where a line has the same one more than once
/// in a function, the later ones are numbered.
pub fn mutations(source: &Source) -> Vec<Mutation> {
    let finders = [
        barriers,
        atomics,
        votes,
        copies,
        comparisons,
        early_exits,
        clamps,
        steps,
        remainders,
        lanes,
        resets,
    ];
    let mut found: Vec<Mutation> = finders.iter().flat_map(|find| find(source)).collect();
    found.sort_by_key(|mutation| (mutation.range.start, mutation.range.end));
    let mut seen: HashMap<(&str, &str, String), u32> = HashMap::new();
    for mutation in &mut found {
        let place = mutation.range.start;
        let key = (source.function(place), source.line(place), mutation.what.clone());
        let count = seen.entry(key).or_default();
        *count += 1;
        if *count > 1 {
            mutation.what += &format!(" ({count})");
        }
    }
    found
}

// ---- Calls --------------------------------------------------------------------------------------

/// A call of a function by its name.
struct Call {
    /// From the name to the closing parenthesis.
    range: Range<usize>,
    /// What stands in angle brackets after the name.
    parameters: Option<Range<usize>>,
    arguments: Vec<Range<usize>>,
}

impl Call {
    fn argument<'a>(&self, source: &'a Source, index: usize) -> &'a str {
        source.code[self.arguments[index].clone()].trim()
    }
}

/// The calls of a function; its declarations are none.
fn calls<'a>(source: &'a Source, name: &'a str) -> impl Iterator<Item = Call> + 'a {
    let code = &source.code;
    words(code, name).filter_map(move |begin| {
        let mut open = begin + name.len();
        let mut parameters = None;
        if code[open..].starts_with('<') {
            let end = open + code[open..].find('>')?;
            parameters = Some(open + 1..end);
            open = end + 1;
        }
        if !code[open..].starts_with('(') {
            return None;
        }
        let close = closing(code, open)?;
        let after = code[close + 1..].trim_start();
        let is_declaration = after.starts_with('{') || after.starts_with("const");
        let arguments = split_arguments(code, open + 1..close);
        (!is_declaration).then_some(Call { range: begin..close + 1, parameters, arguments })
    })
}

/// The range of a call that is a statement of its own, with what it is called on.
fn statement(source: &Source, call: &Call) -> Option<Range<usize>> {
    let code = &source.code;
    let is_receiver = |character| is_word(character) || matches!(character, '.' | '-' | '>');
    let begin = code[..call.range.start].trim_end_matches(is_receiver).len();
    let before = code[..begin].trim_end();
    let stands_alone = before.is_empty()
        || before.ends_with([';', '{', '}', ')', ':'])
        || last_word(before) == "else";
    let ends = code[call.range.end..].trim_start().starts_with(';');
    (stands_alone && ends).then_some(begin..call.range.end)
}

/// Barriers and fences that are not there.
fn barriers(source: &Source) -> Vec<Mutation> {
    const NAMES: [&str; 8] = [
        "__syncthreads",
        "__syncwarp",
        "__threadfence",
        "__threadfence_block",
        "barrier_of_warps",
        "grid_barrier",
        "meet",
        "cp_async_commit",
    ];
    let calls = NAMES.iter().flat_map(|name| calls(source, name));
    calls
        .filter_map(|call| statement(source, &call))
        .map(|range| Mutation::delete(source, range))
        .collect()
}

/// Atomic operations that order less, and some that are none.
fn atomics(source: &Source) -> Vec<Mutation> {
    type Weaken = fn(&[&str]) -> String;
    const WEAKER: [(&str, Weaken); 9] = [
        ("load_acquire", |values| format!("*({})", values[0])),
        ("store_release", |values| format!("*({}) = {}", values[0], values[1])),
        ("store_system_release", |values| format!("store_system({})", values.join(", "))),
        ("add_release", |values| format!("atomicAdd({})", values.join(", "))),
        ("add_acquire_release", |values| format!("atomicAdd({})", values.join(", "))),
        ("max_acquire_release", |values| format!("atomicMax({})", values.join(", "))),
        ("atomicAdd", |values| format!("*({0}) = *({0}) + {1}", values[0], values[1])),
        ("atomicMax", |values| format!("*({0}) = max(*({0}), {1})", values[0], values[1])),
        ("atomicMin", |values| format!("*({0}) = min(*({0}), {1})", values[0], values[1])),
    ];
    let mut found = Vec::new();
    for (name, weaken) in WEAKER {
        for call in calls(source, name) {
            // An update that is not atomic can stand in for a statement only.
            if name.starts_with("atomic") && statement(source, &call).is_none() {
                continue;
            }
            let values: Vec<&str> =
                (0..call.arguments.len()).map(|index| call.argument(source, index)).collect();
            found.push(Mutation::replace(source, call.range.clone(), weaken(&values)));
        }
    }
    found
}

/// Votes in which each thread has its own answer.
fn votes(source: &Source) -> Vec<Mutation> {
    const NAMES: [(&str, usize); 4] =
        [("__syncthreads_or", 0), ("__syncthreads_and", 0), ("__all_sync", 1), ("__any_sync", 1)];
    let calls =
        NAMES.iter().flat_map(|&(name, index)| calls(source, name).map(move |call| (call, index)));
    calls
        .map(|(call, index)| {
            let own = format!("int(({}) != 0)", call.argument(source, index));
            Mutation::replace(source, call.range.clone(), own)
        })
        .collect()
}

/// Copies that one waits for too few of, and copies from where there is nothing.
fn copies(source: &Source) -> Vec<Mutation> {
    let waits = calls(source, "cp_async_wait").filter_map(|call| {
        let pending = source.code[call.parameters?].trim();
        let more = format!("cp_async_wait<{pending} + 1>()");
        Some(Mutation::replace(source, call.range, more))
    });
    let copies = calls(source, "cp_async16").filter_map(|call| {
        let [_, last, present] = &call.arguments[..] else { return None };
        Some(Mutation::delete(source, last.end..present.end))
    });
    waits.chain(copies).collect()
}

// ---- Bounds -------------------------------------------------------------------------------------

fn comparisons(source: &Source) -> Vec<Mutation> {
    const OTHERS: [(&str, &str); 4] = [("<", "<="), ("<=", "<"), (">", ">="), (">=", ">")];
    let mut found = Vec::new();
    for (operator, other) in OTHERS {
        for (index, _) in source.code.match_indices(operator) {
            let range = index..index + operator.len();
            let stands_alone = source.code[..range.start].ends_with(char::is_whitespace)
                && source.code[range.end..].starts_with(char::is_whitespace);
            if stands_alone && !bounds_unrolled_loop(source, index) {
                found.push(Mutation::replace(source, range, other.to_owned()));
            }
        }
    }
    found
}

/// Whether a comparison is the bound of a loop that is unrolled as a whole, and so is a constant: with
/// another one the loop would reach beyond the registers that it is made for.
fn bounds_unrolled_loop(source: &Source, index: usize) -> bool {
    let begin = source.code[..index].rfind('\n').map_or(0, |newline| newline + 1);
    let is_condition = source.line(index).starts_with("for (")
        && source.code[begin..index].matches(';').count() == 1;
    let before = source.text[..begin].trim_end().lines().next_back().unwrap_or_default();
    is_condition && before.trim() == "#pragma unroll"
}

/// Conditions to leave a function or a loop, or to go on with the next turn, that never hold.
fn early_exits(source: &Source) -> Vec<Mutation> {
    let code = &source.code;
    let exits = words(code, "if").filter_map(|begin| {
        let open = begin + code[begin..].find('(')?;
        if !code[begin + 2..open].trim().is_empty() {
            return None;
        }
        let close = closing(code, open)?;
        ends_in_jump(code, close + 1).then(|| Mutation {
            range: open + 1..close,
            replacement: format!("({}) && false", &code[open + 1..close]),
            what: format!("never `if ({})`", on_one_line(&code[open + 1..close])),
        })
    });
    exits.collect()
}

/// Whether the statement at an index is, or as a block ends in, a jump, and has no `else`.
fn ends_in_jump(code: &str, index: usize) -> bool {
    let begin = index + (code[index..].len() - code[index..].trim_start().len());
    let (last, end) = if code[begin..].starts_with('{') {
        let Some(close) = closing(code, begin) else { return false };
        let statements = code[begin + 1..close].trim_end().trim_end_matches(';');
        (
            statements.rfind([';', '{', '}']).map_or(statements, |at| &statements[at + 1..]),
            close + 1,
        )
    } else {
        (&code[begin..], begin + code[begin..].find(';').map_or(0, |len| len + 1))
    };
    let jumps = ["return", "continue", "break"];
    jumps.iter().any(|jump| words(last.trim_start(), jump).next() == Some(0))
        && !code[end..].trim_start().starts_with("else")
}

/// The value that is clamped instead of what it is clamped to.
fn clamps(source: &Source) -> Vec<Mutation> {
    let calls = ["min", "max"].into_iter().flat_map(|name| calls(source, name));
    calls
        .filter(|call| call.arguments.len() == 2)
        .map(|call| {
            let is_constant =
                |value: &str| !value.contains(|c: char| is_word(c) && !c.is_numeric());
            let first = call.argument(source, 0);
            let value = if is_constant(first) { call.argument(source, 1) } else { first };
            Mutation::replace(source, call.range.clone(), format!("({value})"))
        })
        .collect()
}

// ---- Indices ------------------------------------------------------------------------------------

/// Sums and differences without their 1.
fn steps(source: &Source) -> Vec<Mutation> {
    let code = &source.code;
    let mut found = Vec::new();
    for step in [" + 1", " - 1"] {
        for (index, _) in code.match_indices(step) {
            let end = index + step.len();
            let rest = &code[end..];
            let suffix = rest.len() - rest.trim_start_matches(['u', 'l']).len();
            if !rest[suffix..].starts_with(|c| is_word(c) || c == '.' || c == '\'') {
                let len = step.len() + suffix;
                found.push(Mutation::delete(source, index + 1..index + len));
            }
        }
    }
    found
}

/// Quotients and remainders without their divisor.
fn remainders(source: &Source) -> Vec<Mutation> {
    let code = &source.code;
    let mut found = Vec::new();
    for operator in [" / ", " % "] {
        for (index, _) in code.match_indices(operator) {
            if let Some(end) = operand_end(code, index + operator.len()) {
                found.push(Mutation::delete(source, index + 1..end));
            }
        }
    }
    found
}

/// The end of the operand at an index: a number, a name with what it is called with, indexed by and
/// asked for, or what stands in parentheses.
fn operand_end(code: &str, begin: usize) -> Option<usize> {
    let mut end = begin;
    loop {
        let rest = &code[end..];
        let name = rest.len() - rest.trim_start_matches(is_word).len();
        end += match rest.as_bytes() {
            _ if name > 0 => name,
            [b'(' | b'[', ..] => closing(code, end)? + 1 - end,
            [b'.', ..] => 1,
            [b':', b':', ..] | [b'-', b'>', ..] => 2,
            _ => break,
        };
    }
    (end > begin).then_some(end)
}

/// Elements of a neighbouring lane, warp or thread.
fn lanes(source: &Source) -> Vec<Mutation> {
    let code = &source.code;
    let mut found = Vec::new();
    for name in ["lane_index()", "warp_index()", "threadIdx.x", "lane"] {
        for index in words_or_calls(code, name) {
            if is_in_brackets(code, index) {
                let range = index..index + name.len();
                found.push(Mutation::replace(source, range, format!("({name} ^ 1)")));
            }
        }
    }
    found
}

fn words_or_calls<'a>(code: &'a str, name: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(name).map(|(index, _)| index).filter(move |&index| {
        let after = &code[index + name.len()..];
        !code[..index].ends_with(|c| is_word(c) || c == '.') && !after.starts_with(is_word)
    })
}

/// Whether an index of an array is under way at a place of a statement.
fn is_in_brackets(code: &str, index: usize) -> bool {
    let begin = code[..index].rfind([';', '{', '}']).unwrap_or(0);
    let mut open: i32 = 0;
    for (place, character) in code[begin..index].char_indices() {
        match character {
            // Not the captures of a lambda.
            '[' if code[..begin + place].ends_with(|c| is_word(c) || c == ']' || c == ')') => {
                open += 1
            }
            ']' => open = (open - 1).max(0),
            _ => {}
        }
    }
    open > 0
}

/// Places of memory that are not set to zero again.
fn resets(source: &Source) -> Vec<Mutation> {
    let code = &source.code;
    let mut found = Vec::new();
    for zero in [" = 0;", " = 0.0f;"] {
        for (index, _) in code.match_indices(zero) {
            let begin = statement_begin(code, index);
            let place = code[begin..index].trim_start();
            let begin = index - place.len();
            let is_memory = place.contains(['*', '[', '.', '>']);
            let after_word = place.trim_start_matches(is_word);
            let is_declaration = after_word.starts_with(' ') && !after_word.starts_with(" = ");
            if is_memory && !is_declaration {
                found.push(Mutation::delete(source, begin..index + zero.len() - 1));
            }
        }
    }
    found
}

/// Where the statement begins that goes on at an index.
fn statement_begin(code: &str, index: usize) -> usize {
    let mut depth = 0;
    for (place, character) in code[..index].char_indices().rev() {
        match character {
            ')' | ']' => {
                // The condition before a statement ends where the statement begins.
                let follows = code[place + 1..index].starts_with([' ', '\n']);
                if depth == 0 && character == ')' && follows {
                    return place + 1;
                }
                depth += 1;
            }
            '(' | '[' => depth -= 1,
            ';' | '{' | '}' if depth <= 0 => return place + 1,
            _ => {}
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each mutation with what it makes of the text.
    fn mutants(text: &str) -> Vec<String> {
        let source = Source::new("test.cu", text);
        mutations(&source).iter().map(|mutation| on_one_line(&mutation.apply(&source))).collect()
    }

    fn descriptions(text: &str) -> Vec<String> {
        let source = Source::new("test.cu", text);
        mutations(&source).into_iter().map(|mutation| mutation.what).collect()
    }

    #[test]
    fn barriers_are_deleted_where_they_are_called() {
        assert_eq!(
            mutants("DEVICE void meet() { __syncthreads(); }"),
            ["DEVICE void meet() { ; }"]
        );
        assert_eq!(mutants("if (a) work.team->meet();"), ["if (a) ;"]);
        assert_eq!(mutants("else __syncwarp();"), ["else ;"]);
        assert_eq!(mutants("DEVICE void grid_barrier(u32 *word) {}"), [""; 0]);
    }

    #[test]
    fn atomics_order_less() {
        assert_eq!(mutants("while (load_acquire(a + i)) b;"), ["while (*(a + i)) b;"]);
        assert_eq!(mutants("a = add_acquire_release(&b, 2);"), ["a = atomicAdd(&b, 2);"]);
        assert_eq!(mutants("store_release(a, b);"), ["*(a) = b;"]);
        assert_eq!(mutants("atomicMin(&a, b);"), ["*(&a) = min(*(&a), b);"]);
        assert_eq!(mutants("c = atomicMin(&a, b);"), [""; 0]);
        assert_eq!(mutants("DEVICE u32 add_release(u32 *a, u32 b) { c; }"), [""; 0]);
    }

    #[test]
    fn votes_are_each_threads_own() {
        assert_eq!(mutants("if (__syncthreads_or(a) != 0) b;"), ["if (int((a) != 0) != 0) b;"]);
        assert_eq!(mutants("return __all_sync(all, a);"), ["return int((a) != 0);"]);
    }

    #[test]
    fn copies_are_not_waited_for_and_not_masked() {
        assert_eq!(mutants("cp_async_wait<0>();"), ["cp_async_wait<0 + 1>();"]);
        assert_eq!(mutants("cp_async16(&a[b], c, d);"), ["cp_async16(&a[b], c);"]);
        assert_eq!(mutants("cp_async16(a, b);"), [""; 0]);
    }

    #[test]
    fn bounds_are_off_by_one() {
        assert_eq!(
            mutants("a = b < c || d >= e;"),
            ["a = b <= c || d >= e;", "a = b < c || d > e;"]
        );
        assert_eq!(mutants("Parts<n> a; b->c >> d; e << f;"), [""; 0]);
        let unrolled = "#pragma unroll\n  for (u32 i = 0; i < 4; i++) {\n    if (i < a) b;\n  }";
        assert_eq!(descriptions(unrolled), ["`<` becomes `<=`"]);
        assert_eq!(descriptions("#pragma unroll 2\nfor (; a < b;) c;"), ["`<` becomes `<=`"]);
    }

    #[test]
    fn early_exits_are_never_taken() {
        assert_eq!(mutants("if (a || b) return;"), ["if ((a || b) && false) return;"]);
        assert_eq!(
            mutants("if (a) {\n  b = 2;\n  continue;\n}"),
            ["if ((a) && false) { b = 2; continue; }"]
        );
        assert_eq!(mutants("if (a) { return; } else b;"), [""; 0]);
        assert_eq!(mutants("if (a) returned = 2;"), [""; 0]);
    }

    #[test]
    fn clamps_are_dropped() {
        assert_eq!(mutants("a = min(b, c(d, e));"), ["a = (b);"]);
        assert_eq!(mutants("a = max(0, b);"), ["a = (b);"]);
        assert_eq!(mutants("a = std::minimum(b, c);"), [""; 0]);
    }

    #[test]
    fn steps_and_divisors_are_dropped() {
        assert_eq!(mutants("a[b + 1] = c - 1u;"), ["a[b ] = c - 1u;", "a[b + 1] = c ;"]);
        assert_eq!(mutants("a + 16; a + 1.0f;"), [""; 0]);
        assert_eq!(mutants("a / (b * 2) * c;"), ["a * c;"]);
        assert_eq!(mutants("a % B::c.d(e)[f] + 2;"), ["a + 2;"]);
    }

    #[test]
    fn lanes_in_indices_are_others() {
        assert_eq!(mutants("a[lane_index()] = b;"), ["a[(lane_index() ^ 1)] = b;"]);
        assert_eq!(mutants("a[b] = lane_index(); c([&] { d(threadIdx.x); });"), [""; 0]);
        assert_eq!(mutants("a[blockIdx.x + threadIdx.x];"), ["a[blockIdx.x + (threadIdx.x ^ 1)];"]);
    }

    #[test]
    fn resets_are_deleted() {
        assert_eq!(mutants("if (is_last) *counter = 0;"), ["if (is_last) ;"]);
        assert_eq!(mutants("for (;;) a.b[c] = 0;"), ["for (;;) ;"]);
        assert_eq!(mutants("u32 a = 0; f32 *b = 0; c = 0;"), [""; 0]);
    }

    #[test]
    fn mutations_are_told_apart_and_keep_the_lines() {
        assert_eq!(descriptions("a < b && c < d;"), ["`<` becomes `<=`", "`<` becomes `<=` (2)"]);
        let source = Source::new("test.cu", "a = min(b,\n  c);\nd;");
        let mutation = &mutations(&source)[0];
        assert_eq!(mutation.what, "`min(b, c)` becomes `(b)`");
        assert_eq!(mutation.apply(&source), "a = (b)\n;\nd;");
    }
}
