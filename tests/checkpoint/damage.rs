//! Damaged checkpoints get an error that says what is wrong: never a panic, never a read outside
//! of the file.

use crate::fixture::*;
use proptest::prelude::*;
use safetensors::tensor::Dtype as FileDtype;
use serde_json::{Value, json};
use speculators::checkpoint::{self, LentShape, Options};
use speculators::error::Status;
use speculators::tensor::Dtype;
use std::fs;
use std::path::Path;

#[track_caller]
fn assert_refused_with(directory: &Path, options: &Options, status: Status, piece: &str) {
    let error = refused(checkpoint::open(directory, options));
    assert_eq!(error.status(), status, "{error}");
    assert!(error.to_string().contains(piece), "expected {piece:?} in: {error}");
}

#[track_caller]
fn assert_refused(directory: &Path, status: Status, piece: &str) {
    assert_refused_with(directory, &Options::default(), status, piece);
    let mapped = Options { map_files: true, ..Options::default() };
    assert_refused_with(directory, &mapped, status, piece);
}

#[track_caller]
fn assert_fixture_refused(fixture: &Fixture, piece: &str) {
    assert_refused(fixture.write().path(), Status::Format, piece);
}

/// A safetensors file with a header of one's own.
fn raw_file(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

#[track_caller]
fn assert_file_refused(contents: &[u8], piece: &str) {
    let directory = Directory::new();
    Fixture::llama().write_config(directory.path());
    fs::write(directory.join("model.safetensors"), contents).unwrap();
    assert_refused(directory.path(), Status::Format, piece);
    let error = refused(checkpoint::inspect(directory.path()));
    assert_eq!(error.status(), Status::Format);
}

#[track_caller]
fn assert_header_refused(header: &str, piece: &str) {
    assert_file_refused(&raw_file(header.as_bytes(), &[0; 16]), piece);
}

/// `count` members of which each is inside the next.
fn nested(count: usize) -> String {
    format!("{}1{}", "{\"a\":".repeat(count), "}".repeat(count))
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let directory = Fixture::llama().write();
    let path = directory.join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for length in [0, 1, 7, 8, 9, header - 1, header, header + 1, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        assert_refused(directory.path(), Status::Format, "model.safetensors: ");
    }
    fs::write(&path, [&whole[..], &[0]].concat()).unwrap();
    assert_refused(directory.path(), Status::Format, "the rest of the file");
}

#[test]
fn a_header_length_that_lies_is_refused_before_memory_is_taken() {
    for length in [17, 100_000_001, u64::MAX / 2, u64::MAX] {
        let contents = [&length.to_le_bytes()[..], &[b' '; 16]].concat();
        assert_file_refused(
            &contents,
            &format!("header length: expected at most 16, found {length}"),
        );
    }
}

#[test]
fn a_header_that_is_no_table_of_tensors_is_refused() {
    assert_header_refused("", "header:");
    assert_header_refused("tensors", "header:");
    assert_header_refused("[]", "header:");
    assert_header_refused("{", "header:");
    assert_header_refused(
        r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}} x"#,
        "header:",
    );
    assert_header_refused(r#"{"a":5}"#, "header:");
    assert_header_refused(r#"{"a":{"dtype":"F32","shape":[4]}}"#, "data_offsets");
    assert_header_refused(r#"{"a":{"dtype":5,"shape":[4],"data_offsets":[0,16]}}"#, "header:");
    assert_header_refused(r#"{"a":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}"#, "header:");
    assert_header_refused(
        r#"{"a":{"dtype":"F32","shape":[4.5],"data_offsets":[0,16]}}"#,
        "header:",
    );
    assert_header_refused(
        r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,8,16]}}"#,
        "header:",
    );
    assert_header_refused(
        r#"{"a":{"dtype":"F32","shape":[1e400],"data_offsets":[0,16]}}"#,
        "header:",
    );
    assert_header_refused(&nested(100_000), "header:");
    assert_header_refused(&format!("{}4{}", "[".repeat(100_000), "]".repeat(100_000)), "header:");
    let not_text = b"{\"\xff\xfe\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]}}";
    assert_file_refused(&raw_file(not_text, &[0; 16]), "header:");
}

#[test]
fn offsets_that_leave_the_data_overlap_or_leave_holes_are_refused() {
    let one = |shape: &str, offsets: &str| {
        format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let two = |first: &str, second: &str| {
        let member = |name: &str, offsets: &str| {
            format!(r#""{name}":{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}"#)
        };
        format!("{{{},{}}}", member("a", first), member("b", second))
    };
    assert_header_refused(&one("[5]", "[0,20]"), "within 16 bytes, found 0..20");
    assert_header_refused(&one("[4]", "[16,0]"), "within 16 bytes, found 16..0");
    assert_header_refused(&one("[4]", "[0,18446744073709551615]"), "within 16 bytes");
    assert_header_refused(&one("[3]", "[0,16]"), "expected offsets 12 bytes apart for F32 [3]");
    assert_header_refused(&one("[4611686018427387904,4]", "[0,16]"), "countless bytes apart");
    assert_header_refused(&one("[9223372036854775808,2,0]", "[0,16]"), "bytes apart");
    assert_header_refused(&one("[2]", "[0,8]"), "expected 16 bytes, the rest of the file, found 8");
    assert_header_refused(&one("[2]", "[8,16]"), "leaves a hole: expected to start at 0, found 8");
    assert_header_refused(&two("[0,8]", "[4,12]"), "overlaps another tensor");
    assert_header_refused(&two("[0,8]", "[0,8]"), "overlaps another tensor");
    assert_header_refused("{}", "expected 16 bytes, the rest of the file, found 0");
    // Of types that are not known, too, no more elements are believed in than there are bits.
    let other = |shape: &str| one(shape, "[0,16]").replace("F32", "F9");
    assert_header_refused(&other("[129]"), "expected bytes for F9 [129], found 16");
    assert_header_refused(&other("[1099511627776,4398046511104]"), "expected bytes for F9");
    assert_header_refused(
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#,
        "tensor \"a\" occurs twice",
    );
}

#[test]
fn a_missing_tensor_is_named_with_the_shape_that_is_expected() {
    let sound = Fixture::llama();
    for name in sound.tensors.keys() {
        // The vocabulary can be rebuilt from either of its tensors.
        if name == "d2t" || name == "t2d" {
            continue;
        }
        let mut fixture = sound.clone();
        fixture.remove(name);
        let error = refused(checkpoint::open(fixture.write().path(), &Options::default()));
        assert_ne!(error.status(), Status::Internal);
        assert!(error.to_string().contains(&format!("tensor {name:?}: expected")), "{error}");
    }
    let mut fixture = sound.clone();
    fixture.remove("d2t");
    fixture.remove("t2d");
    assert_fixture_refused(&fixture, "tensor \"d2t\": expected 5 offsets");
    let mut fixture = sound;
    fixture.tensors.insert("norm.weight".into(), only_nan(&[HIDDEN]));
    assert_fixture_refused(&fixture, "tensor \"norm.weight\": expected shape [8], found only NaN");
}

#[test]
fn a_wrong_shape_is_refused_for_every_tensor() {
    let sound = Fixture::qwen3();
    for (name, stored) in &sound.tensors {
        for axis in 0..stored.shape.len() {
            let mut shape = stored.shape.clone();
            shape[axis] -= 1;
            let mut fixture = sound.clone();
            let changed = match stored.dtype {
                FileDtype::I64 => integers(&vec![0; shape[0]]),
                FileDtype::BOOL => flags(&vec![1; shape[0]]),
                _ => floats(1, &shape),
            };
            fixture.tensors.insert(name.clone(), changed);
            let error = refused(checkpoint::open(fixture.write().path(), &Options::default()));
            assert_eq!(error.status(), Status::Format, "{error}");
            assert!(error.to_string().contains(name.as_str()), "{error}");
            assert!(error.to_string().contains("expected shape"), "{error}");
        }
        if stored.dtype == FileDtype::F32 {
            let mut fixture = sound.clone();
            let shape = [&stored.shape[..], &[1, 1]].concat();
            fixture.tensors.get_mut(name).unwrap().shape = shape;
            assert_fixture_refused(&fixture, name);
        }
    }
}

#[test]
fn weights_of_another_type_are_refused_by_its_name() {
    let mut fixture = Fixture::llama();
    let bytes = vec![0; HIDDEN];
    let stored = Stored { dtype: FileDtype::F8_E4M3, shape: vec![HIDDEN], bytes };
    fixture.tensors.insert("norm.weight".into(), stored);
    assert_refused(fixture.write().path(), Status::Unsupported, "found F8_E4M3");
    let mut fixture = Fixture::llama();
    fixture.layer_config()["quantization_config"] = json!({"bits": 4});
    assert_refused(fixture.write().path(), Status::Unsupported, "quantization_config");
}

#[test]
fn a_damaged_vocabulary_is_refused() {
    let with = |d2t: &[i64], t2d: Option<&[u8]>| {
        let mut fixture = Fixture::llama();
        fixture.tensors.insert("d2t".into(), integers(d2t));
        match t2d {
            Some(mask) => fixture.tensors.insert("t2d".into(), flags(mask)),
            None => fixture.tensors.remove("t2d"),
        };
        fixture
    };
    let range = "expected target ids from 0 to 11";
    assert_fixture_refused(&with(&[0, 2, 2, 6, 8], None), range);
    assert_fixture_refused(&with(&[-1, 2, 2, 6, 7], None), range);
    assert_fixture_refused(&with(&[i64::MIN, 2, 2, 6, 7], None), range);
    assert_fixture_refused(&with(&[0, i64::MAX, 2, 6, 7], None), range);
    let order = "expected target ids in ascending order, at least 4, found 3 at draft id 2";
    assert_fixture_refused(&with(&[0, 2, 1, 6, 7], None), order);
    assert_fixture_refused(&with(&[9, 2, 1, 6, 7], None), "ascending order");
    let mask = [1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 0];
    assert_fixture_refused(&with(&[0, 2, 2, 6, 7], Some(&mask)), "as t2d says, found 11");
    let mask = [1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1];
    assert_fixture_refused(
        &with(&[0, 2, 2, 6, 7], Some(&mask)),
        "expected 5 drafted tokens, found 6",
    );
    let mask = [2, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0, 1];
    assert_fixture_refused(&with(&[0, 2, 2, 6, 7], Some(&mask)), "expected 0 or 1, found 2 at 0");
    let mut fixture = Fixture::llama();
    fixture.add("d2t", &[DRAFTED.len()]);
    assert_fixture_refused(&fixture, "found F32");
}

#[test]
fn an_index_that_does_not_fit_its_shards_is_refused() {
    let directory = Directory::new();
    let fixture = Fixture::llama();
    let sound = fixture.write_shards(directory.path());
    let refused_index = |index: &Value, status, piece: &str| {
        write_index(directory.path(), index);
        assert_refused(directory.path(), status, piece);
        let inspected = refused(checkpoint::inspect(directory.path()));
        assert_eq!(inspected.status(), status);
    };
    let mapping = |name: &str, file: &str| {
        let mut index = sound.clone();
        index["weight_map"][name] = json!(file);
        index
    };
    let gone = "model-00003-of-00002.safetensors";
    refused_index(&mapping("norm.weight", gone), Status::Io, gone);
    let misplaced = mapping("d2t", &shard_name(1));
    refused_index(&misplaced, Status::Format, "expected tensor \"d2t\"");
    refused_index(&mapping("ghost", &shard_name(0)), Status::Format, "expected tensor \"ghost\"");
    let outside = "file beside the index";
    for path in [
        "../model.safetensors",
        "/etc/model.safetensors",
        "sub/model.safetensors",
        "./model.safetensors",
        "..",
        "",
        "..\\model.safetensors",
        "model.safetensors/",
        "config.json",
        "nul\0.safetensors",
    ] {
        refused_index(&mapping("norm.weight", path), Status::Format, outside);
    }
    refused_index(&json!({}), Status::Format, "weight_map");
    refused_index(&json!({"weight_map": [1]}), Status::Format, "index.json");
    refused_index(&json!({"weight_map": {"a": 1}}), Status::Format, "index.json");
    refused_index(&json!(7), Status::Format, "index.json");
    fs::write(
        directory.join("model.safetensors.index.json"),
        r#"{"weight_map": {"a": "b.safetensors", "a": "b.safetensors"}}"#,
    )
    .unwrap();
    assert_refused(directory.path(), Status::Format, "tensor \"a\" occurs twice");
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let directory = Directory::new();
    let fixture = Fixture::llama();
    fixture.write_shards(directory.path());
    let mut shard = Tensors::new();
    for (position, (name, stored)) in fixture.tensors.iter().enumerate() {
        if position % 2 == 1 || position == 0 {
            shard.insert(name.clone(), stored.clone());
        }
    }
    write_tensors(&directory.join(&shard_name(1)), &shard);
    assert_refused(directory.path(), Status::Format, "\"d2t\": also stored in");
}

#[test]
fn files_that_are_missing_or_no_files_are_refused() {
    let directory = Directory::new();
    assert_refused(&directory.join("nowhere"), Status::Io, "nowhere");
    assert_refused(directory.path(), Status::Io, "config.json");
    Fixture::llama().write_config(directory.path());
    assert_refused(directory.path(), Status::Io, "expected model.safetensors");
    assert_refused(&directory.join("config.json"), Status::Io, "expected a directory");
    fs::write(directory.join("pytorch_model.bin"), "").unwrap();
    assert_refused(directory.path(), Status::Io, "pytorch_model.bin");
    fs::create_dir(directory.join("model.safetensors")).unwrap();
    assert_refused(directory.path(), Status::Io, "expected a regular file");
    fs::remove_file(directory.join("config.json")).unwrap();
    fs::create_dir(directory.join("config.json")).unwrap();
    assert_refused(directory.path(), Status::Io, "expected a regular file");
}

#[test]
fn a_configuration_that_is_no_object_is_refused() {
    let directory = Fixture::llama().write();
    for (text, piece) in [
        (&b""[..], "config.json"),
        (b"[]", "expected an object, found []"),
        (b"\"eagle3\"", "expected an object"),
        (b"{\"speculators_model_type\": \"eagle3\"", "EOF"),
        (b"{\"a\": 1e400}", "out of range"),
        (b"{\"\xff\": 1}", "config.json"),
        (nested(100_000).as_bytes(), "recursion limit"),
        (&vec![b' '; 5 << 20], "expected at most 4194304 bytes"),
    ] {
        fs::write(directory.join("config.json"), text).unwrap();
        assert_refused(directory.path(), Status::Format, piece);
        let error = refused(checkpoint::inspect(directory.path()));
        assert_eq!(error.status(), Status::Format);
    }
}

#[test]
fn settings_of_the_wrong_type_or_size_are_refused_with_their_path() {
    for (key, values) in [
        ("speculators_model_type", vec![json!(3), json!(["eagle3"])]),
        ("speculators_config", vec![json!("greedy"), json!([])]),
        ("transformer_layer_config", vec![json!(null), json!(1), json!("llama")]),
        (
            "draft_vocab_size",
            vec![
                json!(0),
                json!(-1),
                json!(13),
                json!(2.5),
                json!("five"),
                json!(1e300),
                json!([5]),
            ],
        ),
        ("target_hidden_size", vec![json!(0), json!(1e12), json!("wide"), json!({})]),
        (
            "eagle_aux_hidden_state_layer_ids",
            vec![
                json!(3),
                json!([1, 1, 2]),
                json!([-1, 2, 3]),
                json!([1, 2, "x"]),
                json!([1, 2, 1e9]),
            ],
        ),
        ("norm_output", vec![json!(2), json!("yes"), json!([true])]),
        ("norm_before_residual", vec![json!("maybe")]),
    ] {
        for value in values {
            let mut fixture = Fixture::llama();
            fixture.config[key] = value;
            assert_fixture_refused(&fixture, key);
        }
    }
    for (key, values) in [
        ("model_type", vec![json!(1)]),
        ("vocab_size", vec![json!(0), json!(1u64 << 31), json!(u64::MAX), json!("1e30")]),
        ("hidden_size", vec![json!(1_000_000_000_000u64), json!(-8), json!(0), json!(null)]),
        ("intermediate_size", vec![json!(1u64 << 40), json!(true)]),
        ("num_hidden_layers", vec![json!(0), json!(1_000_000)]),
        ("num_attention_heads", vec![json!(0), json!(1e18), json!(3)]),
        ("num_key_value_heads", vec![json!(0), json!(3), json!("many")]),
        ("head_dim", vec![json!(0), json!(5), json!(1u64 << 62)]),
        (
            "rms_norm_eps",
            vec![
                json!(0),
                json!(1e300),
                json!(1e-300),
                json!(-1e-5),
                json!("nan"),
                json!("inf"),
                json!([]),
            ],
        ),
        ("max_position_embeddings", vec![json!(0), json!(1e18)]),
        (
            "rope_parameters",
            vec![json!(5), json!({"rope_theta": "fast"}), json!({"rope_theta": -1})],
        ),
        ("layer_types", vec![json!("full_attention"), json!([]), json!([1]), json!(["sparse"])]),
        ("sliding_window", vec![json!(0), json!("wide")]),
        ("attention_bias", vec![json!("some")]),
    ] {
        for value in values {
            let mut fixture = Fixture::llama();
            fixture.layer_config()[key] = value.clone();
            let error = refused(checkpoint::open(fixture.write().path(), &Options::default()));
            assert_eq!(error.status(), Status::Format, "{error}");
            // Where a class default replaces null, the tensors that no longer fit are named.
            let named = error.to_string().contains(&format!("transformer_layer_config.{key}"));
            assert!(
                named || error.to_string().contains("expected shape"),
                "{key} {value}: {error}"
            );
        }
    }
    for (key, value) in [("model_type", "mamba"), ("hidden_act", "tanhshrink")] {
        let mut fixture = Fixture::llama();
        fixture.layer_config()[key] = json!(value);
        assert_refused(fixture.write().path(), Status::Unsupported, value);
    }
    for methods in [json!(3), json!([3]), json!([{"speculative_tokens": 0}])] {
        let mut fixture = Fixture::llama();
        fixture.config["speculators_config"]["proposal_methods"] = methods;
        assert_fixture_refused(&fixture, "speculators_config.proposal_methods");
    }
}

#[test]
fn a_verifier_that_does_not_fit_is_refused() {
    let target = verifier(false);
    let verifier_directory = Some(target.path().to_path_buf());
    let options = Options { verifier_directory, ..Options::default() };
    let config = |layers: usize, hidden: usize, tied: bool| {
        let config = json!({"num_hidden_layers": layers, "hidden_size": hidden,
            "tie_word_embeddings": tied});
        fs::write(target.join("config.json"), config.to_string()).unwrap();
    };
    let mut fixture = Fixture::llama();
    config(4, HIDDEN, false);
    let directory = fixture.write();
    let piece = "expected a list of layers from 0 to 4";
    assert_refused_with(directory.path(), &options, Status::Format, piece);
    config(8, 2 * HIDDEN, false);
    let piece = "the verifier's have width 16";
    assert_refused_with(directory.path(), &options, Status::Format, piece);

    // With 5 layers the default 2, n / 2, n - 3 would be the same layer three times.
    config(5, HIDDEN, false);
    fixture.config["eagle_aux_hidden_state_layer_ids"] = json!(null);
    let directory = fixture.write();
    assert_refused_with(directory.path(), &options, Status::Format, "found 2 twice in [2, 2, 2]");

    config(8, HIDDEN, false);
    let mut fixture = Fixture::llama();
    fixture.remove("embed_tokens.weight");
    fixture.remove("lm_head.weight");
    let directory = fixture.write();
    let replace = |name: &str, stored: Option<Stored>| {
        let mut tensors = Tensors::new();
        tensors.insert("embed_tokens.weight".into(), floats(1, &[VOCABULARY, HIDDEN]));
        tensors.insert("lm_head.weight".into(), floats(2, &[VOCABULARY, HIDDEN]));
        match stored {
            Some(stored) => tensors.insert(name.into(), stored),
            None => tensors.remove(name),
        };
        write_tensors(&target.join("model.safetensors"), &tensors);
    };
    let rows = "expected at least 12 rows of 8";
    replace("embed_tokens.weight", Some(floats(1, &[VOCABULARY - 1, HIDDEN])));
    assert_refused_with(directory.path(), &options, Status::Format, rows);
    replace("lm_head.weight", Some(floats(1, &[VOCABULARY, HIDDEN + 1])));
    assert_refused_with(directory.path(), &options, Status::Format, rows);
    replace("lm_head.weight", Some(integers(&[1; 4])));
    assert_refused_with(directory.path(), &options, Status::Unsupported, "found I64");
    replace("lm_head.weight", None);
    assert_refused_with(directory.path(), &options, Status::Format, "lm_head.weight, found none");
    replace("embed_tokens.weight", None);
    let piece = "embed_tokens.weight, found none";
    assert_refused_with(directory.path(), &options, Status::Format, piece);

    let dtype = Dtype::F32;
    let lent_embedding = Some(LentShape { rows: VOCABULARY, columns: HIDDEN - 1, dtype });
    let options = Options { lent_embedding, ..Options::default() };
    let status = Status::InvalidArgument;
    assert_refused_with(
        directory.path(),
        &options,
        status,
        "lent embedding: expected 12 rows of 8",
    );
}

#[test]
fn a_drafter_without_a_feature_projection_is_refused_clearly() {
    let mut fixture = Fixture::llama();
    fixture.remove("fc.weight");
    assert_refused(fixture.write().path(), Status::Unsupported, "last hidden state");
}

/// Opens and inspects; what comes out does not matter, only that something does.
fn exercise(directory: &Path) {
    for map_files in [false, true] {
        let options = Options { map_files, ..Options::default() };
        if let Ok(opened) = checkpoint::open(directory, &options) {
            opened.report.to_json();
        }
    }
    let _ = checkpoint::inspect(directory);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_change_of_bytes_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        which in 0..3_usize,
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        let directory = Directory::new();
        let fixture = Fixture::qwen3();
        let name = match which {
            0 => "config.json",
            1 => "model.safetensors",
            _ => "model.safetensors.index.json",
        };
        if which == 2 {
            fixture.write_shards(directory.path());
        } else {
            fixture.write_config(directory.path());
            write_tensors(&directory.join("model.safetensors"), &fixture.tensors);
        }
        let path = directory.join(name);
        let mut bytes = fs::read(&path).unwrap();
        // The header is what can be damaged in interesting ways: weights are any bits.
        let header = bytes.len().min(2200);
        for (index, byte) in changes {
            let position = index.index(header);
            bytes[position] = byte;
        }
        if let Some(length) = cut {
            bytes.truncate(length.index(header));
        }
        fs::write(&path, bytes).unwrap();
        exercise(directory.path());
    }

    #[test]
    fn no_setting_panics(
        key in prop::sample::select(setting_paths()),
        value in prop::sample::select(odd_values()),
    ) {
        let mut fixture = Fixture::qwen3();
        *fixture.config.pointer_mut(&key).unwrap() = value;
        exercise(fixture.write().path());
    }
}

/// A JSON pointer to every member of the configuration.
fn setting_paths() -> Vec<String> {
    fn collect(value: &Value, path: &str, into: &mut Vec<String>) {
        let members: Vec<(String, &Value)> = match value {
            Value::Object(object) => {
                object.iter().map(|(key, value)| (key.clone(), value)).collect()
            }
            Value::Array(list) => {
                list.iter().enumerate().map(|(index, value)| (index.to_string(), value)).collect()
            }
            _ => return,
        };
        for (key, value) in members {
            let path = format!("{path}/{key}");
            collect(value, &path, into);
            into.push(path);
        }
    }
    let mut paths = Vec::new();
    collect(&Fixture::qwen3().config, "", &mut paths);
    paths
}

fn odd_values() -> Vec<Value> {
    vec![
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(1),
        json!(2),
        json!(7),
        json!(0.5),
        json!(1e308),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(1u64 << 31),
        json!(1u64 << 20),
        json!(""),
        json!("9223372036854775808"),
        json!("ü".repeat(200)),
        json!([]),
        json!([[]]),
        json!([1, 2, 3]),
        json!({}),
        json!({"a": {"b": []}}),
    ]
}
