//! Variations as data: what is changed in a `config.json`, and what a program inside then looks at.

use serde_json::{Value, json};

/// Change of a configuration, or of a process.
pub type Edit = Box<dyn Fn(&mut Value)>;

/// The runtime that bulkhead is held against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// The reference, where its version knows what is asked for.
    Runc,
    /// What newer versions of the specification have, runc 1.1 does not know.
    Crun,
}

/// How a variation is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `run`, under bulkhead in a microVM that other variations use as well.
    Member,
    /// `run`, under bulkhead in a microVM of its own: what is asked for belongs to a whole microVM.
    Alone,
    /// `run` on a terminal of this many rows and columns.
    Terminal(u16, u16),
    /// `exec --process` in a container that other variations use as well.
    Exec,
}

/// What the peer must do, so that two failures are not taken for two equal results.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// The program runs and prints something.
    Runs,
    /// The runtime refuses: nothing is printed. bulkhead says this, so that it does not refuse for
    /// a reason that has nothing to do with the variation.
    Refuses(String),
}

/// What is different between the two, and nothing more: an explanation that let anything through
/// would hide what it does not explain.
pub struct Explained {
    /// Id of the explanation.
    pub id: &'static str,
    /// Lines that only the peer has, the last of them how it ended if the two end in different
    /// ways (`ended with 1`). `*` stands for any text.
    pub peer: Vec<String>,
    /// Lines that only bulkhead has.
    pub ours: Vec<String>,
}

/// One variation.
pub struct Case {
    /// What it is about; the module that it comes from.
    pub area: &'static str,
    /// What is different from the default.
    pub name: String,
    /// Changes, in order.
    pub edits: Vec<Edit>,
    /// How it is run.
    pub form: Form,
    /// Whom it is run under besides.
    pub peer: Peer,
    /// What that one does.
    pub expect: Expect,
    /// What can be read from descriptor 3.
    pub preserved: Option<&'static str>,
    /// Standard input; without it, `/dev/null`.
    pub input: Option<&'static str>,
    /// What is different, and why.
    pub explained: Option<Explained>,
}

/// What every process can tell about itself: ids, capabilities, limits, signals, filters, place,
/// environment. Left out is the limit of processes and of pending signals, which the kernel
/// derives from memory (a variation of its own), and signals 32 and 33, which runc 1.1 and crun
/// leave ignored: they are the C library's own.
const SELF: &str = "grep -hE \
     '^(Uid|Gid|Groups|Umask|Cap|NoNewPrivs|Seccomp:|Sig(Blk|Ign|Cgt)|Max|[-0-9])' \
     /proc/self/status /proc/self/limits /proc/self/oom_score_adj \
     | sed -E '/^Max (proc|pend)/d; /^SigIgn/s/1(........)$/0\\1/; /^SigIgn/s/8(.......)$/0\\1/'; \
     pwd; umask; hostname; export -p;";

/// Variations of one area.
pub struct Area(pub &'static str);

impl Area {
    /// A variation whose program tells all about itself, then runs `script`.
    pub fn case(&self, name: impl Into<String>, script: &str) -> Case {
        self.bare(name, &format!("{SELF} {script}"))
    }

    /// A variation whose program runs `script` alone.
    pub fn bare(&self, name: impl Into<String>, script: &str) -> Case {
        let args = json!(["/bin/sh", "-c", format!("exec 2>&1; {script}")]);
        let case = Case {
            area: self.0,
            name: name.into(),
            edits: Vec::new(),
            form: Form::Member,
            peer: Peer::Runc,
            expect: Expect::Runs,
            preserved: None,
            input: None,
            explained: None,
        };
        case.edit(move |config| process(config)["args"] = args.clone())
    }
}

/// The process of a configuration, or the process itself where there is no more.
fn process(value: &mut Value) -> &mut Value {
    match value.get("process") {
        Some(_) => &mut value["process"],
        None => value,
    }
}

/// What `part` of a JSON pointer names in `place`.
fn step<'a>(place: &'a mut Value, part: &str) -> &'a mut Value {
    let Value::Array(list) = place else { return &mut place[part] };
    if part == "-" {
        list.push(Value::Null);
    }
    let index = part.parse().unwrap_or(list.len() - 1);
    &mut list[index]
}

impl Case {
    /// Changes what is given to the runtimes.
    pub fn edit(mut self, change: impl Fn(&mut Value) + 'static) -> Self {
        self.edits.push(Box::new(change));
        self
    }

    /// Sets what a JSON pointer names, and makes the way there; `-` appends to a list.
    pub fn set(self, pointer: &str, value: Value) -> Self {
        let pointer = pointer.to_owned();
        self.edit(move |config| {
            let mut place = config;
            for part in pointer.split('/').skip(1) {
                place = step(place, part);
            }
            *place = value.clone();
        })
    }

    /// Takes out what is named so in the object at `pointer`.
    pub fn remove(self, pointer: &'static str, key: &'static str) -> Self {
        self.edit(move |config| {
            let object = config.pointer_mut(pointer).and_then(Value::as_object_mut);
            object.expect("an object").remove(key).expect("it is there");
        })
    }

    /// Adds a mount.
    pub fn mount(self, destination: &str, kind: &str, source: &str, options: &[&str]) -> Self {
        self.set(
            "/mounts/-",
            json!({"destination": destination, "type": kind, "source": source, "options": options}),
        )
    }

    /// Run in this form.
    pub fn form(self, form: Form) -> Self {
        Self { form, ..self }
    }

    /// Run in a microVM of its own.
    pub fn alone(self) -> Self {
        self.form(Form::Alone)
    }

    /// crun is the peer.
    pub fn crun(self) -> Self {
        Self { peer: Peer::Crun, ..self }
    }

    /// The runtimes refuse, and bulkhead says this.
    pub fn refused(self, says: impl Into<String>) -> Self {
        Self { expect: Expect::Refuses(says.into()), ..self }
    }

    /// With a pipe of this content as descriptor 3.
    pub fn preserved(self, text: &'static str) -> Self {
        Self { preserved: Some(text), ..self }
    }

    /// With this on standard input.
    pub fn input(self, text: &'static str) -> Self {
        Self { input: Some(text), ..self }
    }

    /// The two differ in these lines, for the reason of this id.
    pub fn explained(self, id: &'static str, peer: &[&str], ours: &[&str]) -> Self {
        let owned = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
        let explained = Explained { id, peer: owned(peer), ours: owned(ours) };
        Self { explained: Some(explained), ..self }
    }
}
