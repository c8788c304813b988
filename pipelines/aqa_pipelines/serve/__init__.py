"""`aqa serve extract`: extraction as a service; docs/service.md.

HTTP (app) ─┐                       ┌─▶ a process a device, networks loaded (device) ─▶ store
            ├─▶ one queue, journalled ─┤
folder (watch) ─┘       (jobs)          └─▶ finalise, drain (service)
"""
