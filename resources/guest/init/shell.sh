# shellcheck shell=dash
# What the guest's shell reads first. There is no init program to ask, so these end the machine themselves.
alias poweroff='poweroff -f' reboot='reboot -f' halt='poweroff -f'
PS1='microvm:\w\$ '
