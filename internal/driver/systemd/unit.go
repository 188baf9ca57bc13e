package systemd

import "text/template"

// unitTemplate is the unit (systemd.service(5), systemd.exec(5), systemd.resource-control(5)). KillMode and Delegate are what makes VMs outlive
// the service; OOMPolicy keeps the end of one VM from ending them all.
var unitTemplate = template.Must(template.New("unit").Parse(`# Written by godwit install, and removed by godwit uninstall. Changes belong into a drop-in: systemctl edit godwit
[Unit]
Description=Godwit, the virtual machines of this host
Documentation=man:godwit(1) man:godwit-run(1)
Wants=network-online.target
After=network-online.target remote-fs.target time-sync.target systemd-tmpfiles-setup.service
# Before godwit init or godwit join there is nothing to run.
ConditionDirectoryNotEmpty={{.Places.Data}}
StartLimitIntervalSec=0

[Service]
# Ready when the agent answers. A host waits for its cluster's store for as long as it takes: systemctl status says so.
Type=notify
NotifyAccess=main
TimeoutStartSec=infinity
ExecStart={{.Binary}} run{{range .Args}} {{.}}{{end}}
# Log levels are read anew.
ExecReload=kill -HUP $MAINPID

# VMs are processes of their own. Only the warden is told to end; it ends the roles, and VMs run on.
KillMode=process
# The warden may have to wait until this host's authority is over, if the store is away: killed before, it leaves the watchdog armed.
TimeoutStopSec=120s
Restart=always
RestartSec=100ms
# A malformed or missing configuration does not mend itself, nor does what the main process refuses to work with: the data folder of a newer
# version, say. What the roles meet, the main process outlives.
RestartPreventExitStatus=2 3 5
WatchdogSec=10s

# The cgroups below the unit's own are Godwit's: the roles are in "roles", each VM in one below "vms".
Delegate=yes
TasksMax=infinity
OOMPolicy=continue
OOMScoreAdjust=-900
LimitMEMLOCK=infinity
LimitNOFILE=1048576

[Install]
WantedBy=multi-user.target
`))
