"""Two hosts, a real Slurm and a real sshd on one machine, for the tests in this folder.

A host is a network namespace on a bridge with a hostname of its own; this side is `ctl`.  Both see the same disk, as
the hosts of a cluster see the same file system.  Needs root, Linux and Debian's slurm-wlm, munge, iproute2,
openssh-server and screen; `python tests/cluster/machines.py up` starts all of it by hand, `down` ends it.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOSTS = ("nodeA", "nodeB")
ADDRESSES = {"nodeA": "10.77.0.1", "nodeB": "10.77.0.2", "ctl": "10.77.0.254"}
BRIDGE = "br77"
GPUS = 8  # of each host: device files that Slurm hands out
STATE = Path("/tmp/tryon-cluster")  # logs, keys and Slurm's state
NEEDED = ("ip", "nsenter", "unshare", "sshd", "ssh", "screen", "slurmctld", "slurmd", "munged", "sbatch")

SLURM_CONF = f"""\
ClusterName=test
SlurmctldHost=ctl({ADDRESSES["ctl"]})
SlurmUser=slurm
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
CryptoType=crypto/munge
CredType=cred/munge
SlurmctldPort=6817
SlurmdPort=6818
StateSaveLocation={STATE}/state
SlurmdSpoolDir={STATE}/spool/%n
SlurmctldPidFile={STATE}/slurmctld.pid
SlurmdPidFile={STATE}/slurmd-%n.pid
SlurmctldLogFile={STATE}/slurmctld.log
SlurmdLogFile={STATE}/slurmd-%n.log
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={STATE}/jobcomp.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,batch_sched_delay=1,bf_interval=2
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
ReturnToService=2
SlurmctldTimeout=15
SlurmdTimeout=15
InactiveLimit=0
KillWait=10
MinJobAge=3600
JobRequeue=1
UnkillableStepTimeout=60
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
"""
NODE_CONF = """\
NodeName={host} NodeHostname={host} NodeAddr={address} CPUs=96 Sockets=1 CoresPerSocket=96 ThreadsPerCore=1 \
RealMemory=8000 Gres=gpu:h100:{gpus} State=UNKNOWN
"""
PARTITIONS = """\
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=20 PreemptMode=REQUEUE MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL Default=NO PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""
SSHD_CONF = f"""\
HostKey {STATE}/ssh/host
AuthorizedKeysFile {STATE}/ssh/id.pub
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
MaxStartups 100
"""
SSH_CONF = f"""\
Host {" ".join(HOSTS)}
  User root
  IdentityFile {STATE}/ssh/id
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""


def missing() -> str | None:
    """Why two hosts cannot be made here, or None."""
    if os.environ.get("CI") != "true" and os.environ.get("TRYON_CLUSTER_TESTS") != "yes":
        return "these tests change /etc and start daemons: in a machine of their own, TRYON_CLUSTER_TESTS=yes"
    if sys.platform != "linux" or os.geteuid() != 0:
        return "two hosts on one machine need Linux and root"
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    absent = [name for name in NEEDED if shutil.which(name, path=path) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def sh(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def on(host: str, *command: str, read_only: Path | None = None) -> list[str]:
    """The command line that runs a command as if on that host; `read_only`: a folder that this host cannot write.

    nsenter and not `ip netns exec`: the latter remounts /sys, which hides the control groups from slurmd.
    """
    enter = ["nsenter", f"--net=/run/netns/{host}", "unshare", "--uts"]
    script = 'hostname "$0"; exec "$@"'
    if read_only:
        enter.append("--mount")
        script = f'mount --bind "{read_only}" "{read_only}" && mount -o remount,bind,ro "{read_only}"; {script}'
    return [*enter, "--", "bash", "-c", script, host, *command]


def hosts_up() -> None:
    if all(Path(f"/run/netns/{host}").exists() for host in HOSTS):
        return
    STATE.mkdir(parents=True, exist_ok=True)
    sh("ip", "link", "add", BRIDGE, "type", "bridge", check=False)
    sh("ip", "addr", "add", f"{ADDRESSES['ctl']}/24", "dev", BRIDGE, check=False)
    sh("ip", "link", "set", BRIDGE, "up")
    for host in HOSTS:
        sh("ip", "netns", "add", host)
        sh("ip", "link", "add", f"v{host}", "type", "veth", "peer", "name", "eth0", "netns", host)
        sh("ip", "link", "set", f"v{host}", "master", BRIDGE, "up")
        sh("ip", "-n", host, "addr", "add", f"{ADDRESSES[host]}/24", "dev", "eth0")
        sh("ip", "-n", host, "link", "set", "eth0", "up")
        sh("ip", "-n", host, "link", "set", "lo", "up")
    known = Path("/etc/hosts").read_text()
    if "10.77.0.1 " not in known:
        lines = "".join(f"{address} {host}\n" for host, address in ADDRESSES.items())
        with Path("/etc/hosts").open("a") as file:
            file.write(lines if known.endswith("\n") else "\n" + lines)


def pids(host: str) -> list[int]:
    return [int(pid) for pid in sh("ip", "netns", "pids", host, check=False).split()]


def kill_host(host: str) -> None:
    """The host dies: every process of it at once."""
    for _ in range(2):
        sh("kill", "-9", *map(str, pids(host)), check=False)


@contextmanager
def slow_network(host: str, rate: str) -> Iterator[None]:
    """What the host sends is limited to this rate, as tc writes it."""
    shape = ["tc", "-n", host, "qdisc"]
    sh(*shape, "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "16kb", "latency", "400ms")
    try:
        yield
    finally:
        sh(*shape, "del", "dev", "eth0", "root")


@contextmanager
def cable_out(host: str) -> Iterator[None]:
    """The host is cut off from the others.  Then its slurmd registers anew: slurmctld asks a node that it has declared
    down once a minute."""
    sh("ip", "-n", host, "link", "set", "eth0", "down")
    try:
        yield
    finally:
        sh("ip", "-n", host, "link", "set", "eth0", "up")
        sh("pkill", "-HUP", "-F", f"{STATE}/slurmd-{host}.pid", check=False)


def slurm_up() -> None:
    if sh("sinfo", "-h", check=False) and len(sh("pgrep", "-x", "slurmd", check=False).split()) >= len(HOSTS):
        wait_for_nodes()
        return
    for i in range(GPUS):
        sh("mknod", f"/dev/fakegpu{i}", "c", "1", "3", check=False)
    nodes = "".join(NODE_CONF.format(host=host, address=ADDRESSES[host], gpus=GPUS) for host in HOSTS)
    gres = "".join(f"NodeName={host} Name=gpu Type=h100 File=/dev/fakegpu[0-{GPUS - 1}]\n" for host in HOSTS)
    files = {"slurm.conf": SLURM_CONF + nodes + PARTITIONS, "gres.conf": gres}
    files["cgroup.conf"] = "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n"
    Path("/etc/slurm").mkdir(exist_ok=True)
    for name, text in files.items():
        (Path("/etc/slurm") / name).write_text(text)
    for folder in ("/run/munge", "/var/log/munge", "/var/lib/munge"):
        sh("install", "-d", "-o", "munge", "-g", "munge", "-m", "755", folder)
    if not Path("/run/munge/munge.socket.2").exists() or not sh("pgrep", "-x", "munged", check=False):
        sh("runuser", "-u", "munge", "--", "/usr/sbin/munged", "--force")
    sh("install", "-d", "-o", "slurm", "-g", "slurm", f"{STATE}/state")
    for name in ("slurmctld.log", "jobcomp.txt"):
        (STATE / name).touch()
        shutil.chown(STATE / name, "slurm")
    STATE.chmod(0o755)
    sh("unshare", "--uts", "--", "bash", "-c", "hostname ctl; exec slurmctld -i")
    for host in HOSTS:
        slurmd_up(host)
    wait_for_nodes()


def slurmd_up(host: str, read_only: Path | None = None) -> None:
    Path(f"{STATE}/spool/{host}").mkdir(parents=True, exist_ok=True)
    sh(*on(host, "slurmd", "-N", host, read_only=read_only))


def wait_for_nodes(seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while sh("sinfo", "-h", "-t", "idle", "-o", "%D", check=False).strip() != str(len(HOSTS)):
        if time.monotonic() > end:
            raise RuntimeError(f"Slurm's nodes are not idle:\n{sh('sinfo', '-N', check=False)}")
        time.sleep(0.2)


def sshd_up() -> None:
    keys = STATE / "ssh"
    keys.mkdir(parents=True, exist_ok=True)
    keys.chmod(0o700)
    for name in ("id", "host"):
        if not (keys / name).exists():
            sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name))
    Path("/run/sshd").mkdir(exist_ok=True)
    (keys / "sshd_config").write_text(SSHD_CONF)
    Path("/etc/ssh/ssh_config.d").mkdir(parents=True, exist_ok=True)
    Path("/etc/ssh/ssh_config.d/two-hosts.conf").write_text(SSH_CONF)
    for host in HOSTS:
        if subprocess.run(["ssh", "-o", "ConnectTimeout=3", host, "true"], capture_output=True).returncode:
            options = ["-o", f"PidFile={keys}/sshd-{host}.pid", "-E", f"{keys}/sshd-{host}.log"]
            sh(*on(host, "/usr/sbin/sshd", "-f", str(keys / "sshd_config"), *options))


def down() -> None:
    """Ends what this file started, and nothing else."""
    for host in HOSTS:
        kill_host(host)
    pid_file = STATE / "slurmctld.pid"
    if pid_file.exists():
        sh("kill", pid_file.read_text().strip(), check=False)
    munged = Path("/run/munge/munged.pid")
    if munged.exists():
        sh("kill", munged.read_text().strip(), check=False)
    time.sleep(1)
    for host in HOSTS:
        sh("ip", "netns", "del", host, check=False)
    sh("ip", "link", "del", BRIDGE, check=False)
    hosts = Path("/etc/hosts")
    if hosts.exists():
        kept = [line for line in hosts.read_text().splitlines(keepends=True) if not line.startswith("10.77.0.")]
        hosts.write_text("".join(kept))
    Path("/etc/ssh/ssh_config.d/two-hosts.conf").unlink(missing_ok=True)
    for device in Path("/dev").glob("fakegpu?"):
        device.unlink()
    shutil.rmtree(STATE, ignore_errors=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["up"]:
        hosts_up()
        slurm_up()
        sshd_up()
        print(sh("sinfo", "-N", "-o", "%N %T %c %G %E"), end="")
    elif sys.argv[1:] == ["down"]:
        down()
    else:
        sys.exit(__doc__)
