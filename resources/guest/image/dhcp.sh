#!/bin/sh
# shellcheck shell=dash
# What udhcpc calls when a lease comes or goes: the event as an argument, the lease in variables.
# shellcheck disable=SC2154  # they are udhcpc's
case $1 in
    deconfig)
        ip addr flush dev "$interface"
        ip link set "$interface" up
        ;;
    bound | renew)
        ip addr flush dev "$interface"
        ip addr add "$ip/${mask:-24}" broadcast + dev "$interface"
        if [ -n "$mtu" ]; then ip link set "$interface" mtu "$mtu"; fi
        for gateway in $router; do
            # A gateway outside the network, as of an address with a mask of 32 bits, needs a route to itself first.
            ip route add "$gateway" dev "$interface" 2> /dev/null
            ip route add default via "$gateway" dev "$interface" && break
        done
        for server in $dns; do echo "nameserver $server"; done > /run/resolv.conf
        if [ -n "$domain" ]; then echo "search $domain" >> /run/resolv.conf; fi
        ;;
esac
