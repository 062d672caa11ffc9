//! `launch`: the flags of `docker run`.

use std::net::IpAddr;
use std::path::PathBuf;

use bulkhead_protocol::id::ContainerId;
use clap::{ArgAction, Args};

use super::Global;
use crate::failure::{EXIT_LAUNCH, Failure};
use crate::image::store::DEFAULT_PATH;
use crate::launch::disks::{self, MountFlag};
use crate::launch::network::{self, NetworkChoice, NetworkFlagError};
use crate::launch::root::RootMode;
use crate::launch::settings::{self, Settings};
use crate::launch::{LaunchRequest, env, launch};
use crate::supervisor::lead;
use crate::uplink::{self, Port};

const EXAMPLES: &str = "\
IMAGE is one of
  DIR[:TAG]                       an OCI image layout (umoci, skopeo, buildah)
  FILE[:TAG]                      an OCI archive, or what `docker save` wrote, perhaps compressed
  oci:DIR, oci-archive:FILE, docker-archive:FILE
                                  the same, with the form spelled out as for skopeo
  PATH:@0, PATH@sha256:DIGEST     by position or by digest of the manifest

Examples:
  skopeo copy docker://debian:12 oci-archive:debian.tar
  bulkhead launch --rm -it debian.tar                        a shell in a microVM of its own
  bulkhead launch --rm -v $PWD:/src:ro -w /src debian.tar ls -l
  echo hello | bulkhead launch --rm -i debian.tar tr a-z A-Z
  bulkhead launch -d --name web -m 512m --cpus 2 -p 8080:80 ./web-image:v1
  bulkhead exec web ps; bulkhead kill web; bulkhead delete web

Exit code: the command's; 125 if bulkhead itself failed, 126 if the command cannot be run,
127 if it does not exist.";

/// Arguments of `launch`.
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = EXAMPLES)]
pub(super) struct LaunchArgs {
    /// Keep standard input open.
    #[arg(short, long)]
    interactive: bool,
    /// Give the container a terminal.
    #[arg(short, long)]
    tty: bool,
    /// Run in the background and print the container's id.
    #[arg(short, long)]
    detach: bool,
    /// Remove the container when it has ended.
    #[arg(long)]
    rm: bool,
    /// Name, which is the container's id [default: 64 random digits].
    #[arg(long, value_name = "NAME")]
    name: Option<ContainerId>,
    /// Set a variable; NAME alone takes over the caller's.
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Set the variables of a file, one NAME=VALUE a line.
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Working directory.
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User and group, by name or number.
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Mount a directory or file of the host; a missing directory is made.
    #[arg(short, long, value_name = "SRC:DST[:ro]")]
    volume: Vec<String>,
    /// Mount the file system in an image file, or a directory of the host.
    #[arg(long, value_name = "type=image,source=FILE,target=DIR[,readonly]")]
    mount: Vec<String>,
    /// Give a block device or an image file to the container as a device node.
    #[arg(long, value_name = "HOST[:GUEST[:rwm]]")]
    device: Vec<String>,
    /// Root file system. image: a disk that all containers of IMAGE read, with half of the guest's
    /// memory for what each writes. share: a directory of the host, slower to read, with the
    /// store's disk for what each writes [default: image, and share where mkfs.erofs is missing or
    /// the container can have no such disk].
    #[arg(long, value_name = "share|image")]
    root_mode: Option<RootMode>,
    /// Memory of the container.
    #[arg(short, long, value_name = "SIZE", value_parser = settings::memory)]
    memory: Option<u64>,
    /// CPU time, in CPUs.
    #[arg(long, value_name = "N", value_parser = settings::cpus)]
    cpus: Option<i64>,
    /// Make the root file system read-only.
    #[arg(long)]
    read_only: bool,
    /// Replace the image's entry point.
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Host name [default: the start of the id].
    #[arg(short = 'h', long, value_name = "NAME", value_parser = settings::hostname)]
    hostname: Option<String>,
    /// Network: default is the bridge bulkhead0 where nftables is installed, else pasta.
    #[arg(
        long,
        visible_alias = "net",
        value_name = "default|bridge|pasta|none|ns:PATH",
        default_value = "default",
        value_parser = network::network
    )]
    network: NetworkChoice,
    /// Let a port of the host lead to one of the container.
    #[arg(short, long, value_name = "[IP:]HOST:GUEST[/tcp|/udp]")]
    publish: Vec<String>,
    /// Add a name to /etc/hosts.
    #[arg(long, value_name = "NAME:ADDRESS", value_parser = network::add_host)]
    add_host: Vec<(String, IpAddr)>,
    /// Nameserver in place of the host's.
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<IpAddr>,
    /// Annotate the container.
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = settings::label)]
    label: Vec<String>,
    /// Directory of unpacked layers and of what containers write [env: BULKHEAD_STORE].
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Largest image, unpacked.
    #[arg(long, value_name = "SIZE", default_value = "32g", value_parser = settings::size)]
    unpack_max: u64,
    /// Print this help.
    #[arg(long, action = ArgAction::HelpLong)]
    help: Option<bool>,
    /// The image, then the command and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_names = ["IMAGE", "COMMAND"], num_args = 1..)]
    image_and_command: Vec<String>,
}

pub(super) fn run(global: &Global, args: LaunchArgs) -> Result<u8, Failure> {
    let request = request(global, args)?;
    lead(|leader| launch(request, leader))
}

fn request(global: &Global, args: LaunchArgs) -> Result<LaunchRequest, Failure> {
    let store = args.store.or_else(|| std::env::var_os("BULKHEAD_STORE").map(PathBuf::from));
    let mut words = args.image_and_command.into_iter();
    let image = words.next().unwrap_or_default();
    let volumes = args.volume.iter();
    let here = std::env::current_dir().map_err(|error| usage(&error))?;
    let volumes = volumes.map(|text| settings::volume(text, &here).map_err(|error| usage(&error)));
    let mut volumes = volumes.collect::<Result<Vec<_>, Failure>>()?;
    let mut images = Vec::new();
    for text in &args.mount {
        match disks::mount(text, &here).map_err(|error| usage(&error))? {
            MountFlag::Bind(volume) => volumes.push(volume),
            MountFlag::Image(image) => images.push(image),
        }
    }
    let devices = args.device.iter();
    let devices = devices.map(|text| disks::device(text, &here).map_err(|error| usage(&error)));
    let settings = Settings {
        command: words.collect(),
        entrypoint: args.entrypoint,
        env: variables(&args.env, &args.env_file).map_err(|error| usage(&error))?,
        workdir: args.workdir,
        user: args.user,
        hostname: args.hostname,
        terminal: args.tty,
        read_only: args.read_only,
        memory: args.memory,
        cpu_quota_us: args.cpus,
        volumes,
        labels: args.label,
        devices: devices.collect::<Result<_, Failure>>()?,
        images,
        ports: ports(&args.network, &args.publish)?,
        network: args.network,
        add_hosts: args.add_host,
        dns: args.dns,
    };
    Ok(LaunchRequest {
        image,
        settings,
        id: args.name,
        detach: args.detach,
        interactive: args.interactive,
        remove: args.rm,
        store: store.unwrap_or_else(|| PathBuf::from(DEFAULT_PATH)),
        unpack_max: args.unpack_max,
        root_mode: args.root_mode,
        state_root: global.state_root()?,
        systemd_cgroup: global.systemd_cgroup,
        debug: global.debug(),
    })
}

fn ports(network: &NetworkChoice, texts: &[String]) -> Result<Vec<Port>, Failure> {
    let ports = uplink::ports(texts).map_err(|error| usage(&error))?;
    let reachable = !matches!(network, NetworkChoice::None | NetworkChoice::Path(_));
    match ports.is_empty() || reachable {
        true => Ok(ports),
        false => Err(usage(&NetworkFlagError::Publish)),
    }
}

/// Files first: a flag overrides them.
fn variables(flags: &[String], files: &[PathBuf]) -> Result<Vec<String>, env::EnvError> {
    let own = |name: &str| std::env::var(name).ok();
    let mut variables = Vec::new();
    for file in files {
        variables.extend(env::read_file(file, own)?);
    }
    for flag in flags {
        variables.push(env::flag(flag, own)?);
    }
    Ok(variables)
}

fn usage(error: &dyn std::error::Error) -> Failure {
    let fix = "see `bulkhead launch --help`";
    Failure::new("reading the flags", crate::failure::chain(error), fix).with_code(EXIT_LAUNCH)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    #[command(disable_help_flag = true)]
    struct Command {
        #[command(flatten)]
        launch: LaunchArgs,
    }

    fn parse(words: &[&str]) -> Result<LaunchArgs, clap::Error> {
        Command::try_parse_from(["launch"].iter().chain(words)).map(|command| command.launch)
    }

    #[test]
    fn flags_behind_the_image_belong_to_the_command() {
        let args = parse(&["-it", "--rm", "img", "--rm", "-e", "x", "--", "-h"]).unwrap();
        assert!(args.interactive && args.tty && args.rm && args.env.is_empty());
        assert_eq!(args.image_and_command, ["img", "--rm", "-e", "x", "--", "-h"]);
    }

    #[test]
    fn flags_of_docker_run_are_understood() {
        let args = parse(&[
            "-d",
            "--name",
            "n",
            "-e",
            "A=1",
            "--env",
            "B",
            "-w/tmp",
            "-u",
            "1:2",
            "-v",
            "/a:/b:ro",
            "-m",
            "512m",
            "--cpus=1.5",
            "--read-only",
            "--entrypoint",
            "",
            "-h",
            "host",
            "-l",
            "x",
            "img",
        ])
        .unwrap();
        assert_eq!(args.name.unwrap().as_str(), "n");
        assert_eq!((args.memory, args.cpus), (Some(512 << 20), Some(150_000)));
        assert_eq!(args.entrypoint.as_deref(), Some(""));
        assert_eq!(
            (args.hostname.as_deref(), args.label.as_slice()),
            (Some("host"), &["x=".to_owned()][..])
        );
        assert_eq!(args.unpack_max, 32 << 30);
    }

    #[test]
    fn unusable_flags_are_refused() {
        for words in [
            &[][..],
            &["-m", "1m", "img"],
            &["-m", "x", "img"],
            &["--cpus", "0", "img"],
            &["--name", "a/b", "img"],
            &["--hostname", "a b", "img"],
            &["--unknown", "img"],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn state_of_a_relative_root_is_found_from_everywhere() {
        let line = ["bulkhead", "--root", "state", "launch", "-d", "img"];
        let cli = crate::cli::Cli::try_parse_from(line).unwrap();
        let args = parse(&["-d", "img"]).unwrap();
        let request = request(&cli.global, args).unwrap();
        assert_eq!(request.state_root, std::env::current_dir().unwrap().join("state"));
    }

    #[test]
    fn help_shows_examples() {
        let help = parse(&["--help"]).unwrap_err();
        assert_eq!(help.kind(), clap::error::ErrorKind::DisplayHelp);
        assert!(help.to_string().contains("skopeo copy"));
    }
}
