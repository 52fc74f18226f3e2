//! A network namespace for each replica, behind a bridge in one more: a switch with its hosts. And a
//! loopback of our own, on which nobody else sends.
//!
//! Everything is made by `ip`, needs root, and is removed again when it is dropped. The names carry
//! this process's number, and nothing else is touched.

use std::{
    fs::File,
    io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsFd as _, OwnedFd},
    process::{Command, Output},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Why there are no namespaces.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetnsError {
    /// Only root may.
    #[error("network namespaces need root; run it by sudo, or without --netns")]
    NotRoot,
    /// `ip` or `tc` is not there.
    #[error("cannot run {command}: {source}; install iproute2")]
    Missing {
        /// Which.
        command: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// It refused.
    #[error("`{command}` failed: {message}")]
    Refused {
        /// All of it.
        command: String,
        /// What it said.
        message: String,
    },
    /// One was made, but cannot be entered.
    #[error("cannot enter a network namespace: {source}")]
    Enter {
        /// What the operating system said.
        source: io::Error,
    },
}

/// The namespaces of one cluster; removed when this is dropped.
#[derive(Debug)]
pub struct Namespaces {
    switch: String,
    hosts: Vec<String>,
    third_octet: u8,
}

/// The port of every host: they have addresses of their own.
const PORT: u16 = 7000;

impl Namespaces {
    /// For so many hosts; of the datagrams to each of them, and of those to the client, `loss_percent`
    /// are lost.
    pub fn new(hosts: u16, loss_percent: Option<f64>) -> Result<Self, NetnsError> {
        if !rustix::process::geteuid().is_root() {
            return Err(NetnsError::NotRoot);
        }
        let process = std::process::id();
        let switch = format!("hcb{process}sw");
        ip(&["netns", "add", &switch])?;
        // From here on, what was made is removed even if the rest fails.
        let mut made =
            Self { switch: switch.clone(), hosts: Vec::new(), third_octet: (process % 250) as u8 };
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", "br0", "up"])?;
        for host in 1..=hosts {
            let name = format!("hcb{process}n{host}");
            ip(&["netns", "add", &name])?;
            made.hosts.push(name.clone());
            let port = format!("p{host}");
            made.plug(&port, "eth0", Some(&name), made.address(host), loss_percent)?;
        }
        made.plug("p0", &device(), None, made.client(), loss_percent)?;
        Ok(made)
    }

    /// Connects `port` of the switch with `device` in a namespace, or here.
    fn plug(
        &self,
        port: &str,
        device: &str,
        namespace: Option<&str>,
        address: Ipv4Addr,
        loss_percent: Option<f64>,
    ) -> Result<(), NetnsError> {
        let switch = &self.switch;
        let inside: Vec<&str> = namespace.map_or(Vec::new(), |name| vec!["-n", name]);
        let peer = namespace.unwrap_or("1");
        ip(&[
            "-n", switch, "link", "add", port, "type", "veth", "peer", "name", device, "netns",
            peer,
        ])?;
        ip(&["-n", switch, "link", "set", port, "master", "br0", "up"])?;
        let address = format!("{address}/24");
        ip(&[&inside[..], &["addr", "add", &address, "dev", device]].concat())?;
        ip(&[&inside[..], &["link", "set", device, "up"]].concat())?;
        if namespace.is_some() {
            ip(&[&inside[..], &["link", "set", "lo", "up"]].concat())?;
        }
        if let Some(percent) = loss_percent {
            // The kernel would hand a train of datagrams on as one, and lose it as one.
            ip(&[&inside[..], &["link", "set", device, "gso_max_segs", "1"]].concat())?;
            lose(switch, port, percent)?;
        }
        Ok(())
    }

    /// Where a host is, counted from 1.
    pub fn host(&self, number: u16) -> SocketAddrV4 {
        SocketAddrV4::new(self.address(number), PORT)
    }

    /// Where the generator is.
    pub fn client(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 213, self.third_octet, 254)
    }

    /// What runs a program on a host, counted from 1.
    pub(crate) fn command(&self, number: u16, program: &std::path::Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.hosts[usize::from(number) - 1]]).arg(program);
        command
    }

    fn address(&self, number: u16) -> Ipv4Addr {
        // There are far fewer than 250 hosts.
        Ipv4Addr::new(10, 213, self.third_octet, number as u8)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        // It would go with its other end, but the kernel takes its time to remove a namespace. What
        // cannot be removed is not there, or in use by somebody; there is nobody to tell.
        let _ = ip(&["link", "del", &device()]);
        for name in self.hosts.iter().chain([&self.switch]) {
            let _ = ip(&["netns", "del", name]);
        }
    }
}

/// The thread that made this is in a network namespace with nothing but a loopback, on which no train of
/// datagrams travels as one (GSO); so are the threads and processes that it starts meanwhile. When this
/// is dropped the thread is back where it was.
#[derive(Debug)]
pub struct OwnLoopback {
    before: OwnedFd,
}

impl OwnLoopback {
    /// Goes there.
    pub fn enter() -> Result<Self, NetnsError> {
        if !rustix::process::geteuid().is_root() {
            return Err(NetnsError::NotRoot);
        }
        let open = |path: &str| {
            File::open(path).map(OwnedFd::from).map_err(|source| NetnsError::Enter { source })
        };
        let before = open("/proc/thread-self/ns/net")?;
        let name = format!("hcb{}lo", std::process::id());
        ip(&["netns", "add", &name])?;
        let entered = (|| {
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
            ip(&["-n", &name, "link", "set", "lo", "gso_max_segs", "1"])?;
            move_to(&open(&format!("/run/netns/{name}"))?)
        })();
        // The namespace lives as long as somebody is in it; its name is not needed for that.
        ip(&["netns", "del", &name])?;
        entered.map(|()| Self { before })
    }
}

impl Drop for OwnLoopback {
    fn drop(&mut self) {
        // Who was there may go there again.
        let _ = move_to(&self.before);
    }
}

fn move_to(namespace: &OwnedFd) -> Result<(), NetnsError> {
    let kind = Some(LinkNameSpaceType::Network);
    move_into_link_name_space(namespace.as_fd(), kind)
        .map_err(|errno| NetnsError::Enter { source: errno.into() })
}

/// The generator's end of its cable.
fn device() -> String {
    format!("hcb{}", std::process::id())
}

/// Loses a share of what leaves a port of the switch.
///
/// By a classic BPF program, since more kernels have that than netem: load a random word; below the
/// threshold return 2 (`TC_ACT_SHOT`), otherwise 0 (`TC_ACT_OK`).
fn lose(switch: &str, port: &str, percent: f64) -> Result<(), NetnsError> {
    // SKF_AD_OFF + SKF_AD_RANDOM.
    const RANDOM: u32 = (-0x1000_i32 + 56).cast_unsigned();
    #[expect(clippy::cast_sign_loss, reason = "a share is not negative")]
    let below = (percent.min(100.0) / 100.0 * f64::from(u32::MAX)) as u32;
    let program = format!("4,32 0 0 {RANDOM},53 1 0 {below},6 0 0 2,6 0 0 0");
    run("tc", &["-n", switch, "qdisc", "add", "dev", port, "clsact"])?;
    let filter = ["-n", switch, "filter", "add", "dev", port, "egress"];
    run("tc", &[&filter[..], &["bpf", "direct-action", "bytecode", &program]].concat())
}

fn ip(arguments: &[&str]) -> Result<(), NetnsError> {
    run("ip", arguments)
}

fn run(command: &'static str, arguments: &[&str]) -> Result<(), NetnsError> {
    let Output { status, stderr, .. } = Command::new(command)
        .args(arguments)
        .output()
        .map_err(|source| NetnsError::Missing { command, source })?;
    if status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&stderr).trim().replace('\n', "; ");
    Err(NetnsError::Refused { command: format!("{command} {}", arguments.join(" ")), message })
}
