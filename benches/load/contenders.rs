//! Who takes part: this library, its peers, and the limits.

use super::figures::Figures;
use super::fio::Fio;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

/// What is to be loaded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum What {
    Whole,
    Slices,
}

impl What {
    fn name(self) -> &'static str {
        match self {
            What::Whole => "whole",
            What::Slices => "slices",
        }
    }
}

#[derive(Clone)]
pub enum Program {
    /// This one, run again.
    Own,
    /// peers.py, by this interpreter.
    Python(PathBuf),
    Fio(Fio),
}

#[derive(Clone)]
pub struct Contender {
    /// For people.
    pub title: String,
    /// For `--only`, and the children.
    pub who: &'static str,
    pub how: String,
    pub program: Program,
    pub environment: Vec<(&'static str, &'static str)>,
    /// How it is checked, once and unmeasured, if it keeps nothing that could be checked when the clock has stopped.
    pub checked_as: Option<String>,
}

impl Contender {
    pub fn own(who: &'static str, how: &str, title: &str) -> Contender {
        Contender {
            title: title.to_owned(),
            who,
            how: how.to_owned(),
            program: Program::Own,
            environment: Vec::new(),
            checked_as: None,
        }
    }

    pub fn python(interpreter: &std::path::Path, who: &'static str, how: &str, title: &str) -> Contender {
        Contender { program: Program::Python(interpreter.to_owned()), ..Contender::own(who, how, title) }
    }

    /// Starts the process, which gets ready and waits for [`Started::go`]. Fio has none before it goes.
    pub fn start(&self, what: What, files: &[PathBuf]) -> Started {
        let mut command = match &self.program {
            Program::Own => Command::new(std::env::current_exe().expect("this program")),
            Program::Python(interpreter) => Command::new(interpreter),
            Program::Fio(fio) => return Started::Fio(fio.clone(), files.to_vec()),
        };
        match self.program {
            Program::Python(_) => command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/load/peers.py")),
            _ => command.arg("child"),
        };
        command.args([what.name(), self.who, &self.how]).args(files);
        command.envs(self.environment.iter().copied());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a process");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        Started::Running(Running { child, output })
    }
}

pub enum Started {
    Running(Running),
    Fio(Fio, Vec<PathBuf>),
}

impl Started {
    /// Waits until it can go.
    pub fn wait(&mut self) -> Result<(), String> {
        match self {
            Started::Running(running) => running.wait_for("ready").map(|_| ()),
            Started::Fio(..) => Ok(()),
        }
    }

    /// Lets it load, and tells what that cost.
    pub fn go(self) -> Result<Figures, String> {
        match self {
            Started::Running(running) => running.go(),
            Started::Fio(fio, files) => fio.run(&files),
        }
    }
}

pub struct Running {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Running {
    fn go(mut self) -> Result<Figures, String> {
        // Who does not read it has ended, which is seen next.
        let _ = self.child.stdin.take().expect("a pipe").write_all(b"go\n");
        let result = self.wait_for("result ")?;
        let status = self.child.wait().expect("a process");
        let value = serde_json::from_str(&result).map_err(|error| error.to_string())?;
        Figures::from_json(&value).filter(|_| status.success()).ok_or_else(|| status.to_string())
    }

    /// The rest of the line that starts so. Libraries may print what they like besides.
    fn wait_for(&mut self, start: &str) -> Result<String, String> {
        let mut line = String::new();
        while self.output.read_line(&mut line).expect("a pipe") > 0 {
            if let Some(rest) = line.strip_prefix(start) {
                return Ok(rest.trim().to_owned());
            }
            line.clear();
        }
        let status = self.child.wait().expect("a process");
        Err(format!("{status} before it said {start}"))
    }
}
